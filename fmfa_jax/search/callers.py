# SPDX-License-Identifier: Apache-2.0
"""Who may ask the server: names and origins, the password, and how often it is tried.

On the loopback interface the server answers only to names of this machine, so that
other sites' pages cannot reach it through a name of their own that resolves there.
"""

import base64
import hashlib
import hmac
import ipaddress
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException
from starlette.requests import Request

from fmfa_jax.search.service import BusyError

GUESSES = 60
"""Wrong passwords, from whomever, after which only known callers may try one."""
GUESSES_EACH = 10
"""Wrong passwords of one address after which it may not try another."""
GUESS_SECONDS = 60
"""The time in which they are counted."""
_KNOWN = 1024


def check_names(request: Request, names: Collection[str], *, loopback: bool) -> None:
    """Refuse a request under a foreign name, or from another site's page.

    Args:
        request: Anything.
        names: Further names of this server, in lower case.
        loopback: Whether only this machine reaches the server.

    Raises:
        HTTPException: 403.
    """
    host = request.headers.get("Host", "").lower()
    if loopback or names:
        name = _name(host)
        if not (name in names or is_loopback(name)):
            raise HTTPException(403, "this server does not answer to that name")
    origin = request.headers.get("Origin")
    if origin is not None:
        asker = origin.lower().partition("://")[2]
        if asker != host and _name(asker) not in names:
            raise HTTPException(403, "another site's page asked")


class Password:
    """The password of a server; "" if it has none.

    After too many wrong ones a password is not looked at, right or wrong, for a while:
    an answer to it would be a guess. Whoever was let in before is then still served.
    """

    def __init__(self, text: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._digest = hashlib.sha256(text.encode()).digest() if text else b""
        self._clock = clock
        self._wrong: deque[tuple[float, str]] = deque()
        self._known: OrderedDict[str, None] = OrderedDict()

    def check(self, request: Request) -> None:
        """Refuse a request without the password.

        Raises:
            HTTPException: 401, or 429 after too many wrong ones.
        """
        if not self._digest:
            return
        given = _given(request)
        if given is not None:
            caller = address(request)
            if wait := self._wait(caller):
                told = f"too many wrong passwords; try again in {wait} s"
                raise HTTPException(429, told, {"Retry-After": str(wait)})
            # Digests have one length: comparing them says nothing of the password.
            if hmac.compare_digest(hashlib.sha256(given).digest(), self._digest):
                return self._remember(caller)
            self._wrong.append((self._clock(), caller))
        challenge = {"WWW-Authenticate": 'Basic realm="search", charset="UTF-8"'}
        raise HTTPException(401, "wanted the password", challenge)

    def _wait(self, caller: str) -> int:
        """Return for how many seconds a caller's password is not looked at."""
        now = self._clock()
        while self._wrong and now - self._wrong[0][0] >= GUESS_SECONDS:
            self._wrong.popleft()
        mine = [when for when, each in self._wrong if each == caller]
        first = None
        if len(mine) >= GUESSES_EACH:
            first = mine[0]
        elif len(self._wrong) >= GUESSES and caller not in self._known:
            first = self._wrong[0][0]
        return 0 if first is None else max(1, round(first + GUESS_SECONDS - now))

    def _remember(self, caller: str) -> None:
        self._known[caller] = None
        self._known.move_to_end(caller)
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)


class Places:
    """Work that is done at a time, with a limit for each address."""

    def __init__(self, most: int, each: int) -> None:
        self._most, self._each = most, each
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self, request: Request) -> Iterator[None]:
        """Hold a place; raise BusyError if there is none."""
        caller = address(request)
        if self._taken[caller] >= self._each or self._taken.total() >= self._most:
            raise BusyError("too many requests at once; try again in a moment")
        self._taken[caller] += 1
        try:
            yield
        finally:
            self._taken[caller] -= 1
            self._taken += Counter()  # forgets who holds none


def address(request: Request) -> str:
    """Return the address of who asks, as `owner` does."""
    return owner(request.client.host if request.client else "")


def owner(host: str) -> str:
    """Return an address; of IPv6 the /64, all of which belongs to one customer."""
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(parsed, ipaddress.IPv4Address):
        return host
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), 64), strict=False))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _given(request: Request) -> bytes | None:
    """Return the password that came, if one did."""
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded, validate=True).partition(b":")[2]
    except ValueError:
        return None


def _name(host: str) -> str:
    """Return a Host header without its port and brackets."""
    return (host if host.endswith("]") else host.rsplit(":", 1)[0]).strip("[]")
