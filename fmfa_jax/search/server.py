# SPDX-License-Identifier: Apache-2.0
"""The web page of an index: Starlette on uvicorn over one static page.

What the server gives away: its own page files, and pictures of the index by NUMBER,
decoded and encoded anew, so that no other file can come out. It listens on the loopback
by default; there it answers only to names of this machine, so that other sites' pages
cannot reach it through a name of their own that resolves to 127.0.0.1.

No client can hold up another: a connection must bring its request, and a request its
body, within seconds; work that does not fit is refused with 503.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fmfa_jax.search.service import MAX_UPLOAD, BusyError, Service
from fmfa_jax.search.store import SearchError

MAX_JSON = 16 * 1024
CONNECTIONS = 512
"""Further connections are closed at once."""
UPLOADS = 8
"""Example pictures that are received at a time."""
REQUEST_SECONDS = 10
BODY_SECONDS = 30
FAILURE_DELAY = 0.5
"""Seconds between the answers to wrong passwords, from whomever they come."""
_PAGE = Path(__file__).parent / "page"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' blob:; style-src 'self'; "
        "script-src 'self'; connect-src 'self'; form-action 'none'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_UVICORN = {
    "ws": "none",
    "lifespan": "off",
    "log_config": None,
    "log_level": logging.CRITICAL,
    "access_log": False,
    "proxy_headers": False,
    "server_header": False,
    "headers": list(_HEADERS.items()),
    "timeout_graceful_shutdown": 5,
}
_log = logging.getLogger(__name__)


class SearchServer:
    """Serves one index at `url` until it is stopped.

    `loopback` tells whether only this machine reaches its `address`.
    """

    def __init__(
        self,
        service: Service,
        *,
        host: str,
        port: int,
        password: str = "",
        names: Sequence[str] = (),
        root_path: str = "",
        certificate: str | None = None,
        key: str | None = None,
    ) -> None:
        """Listen on `host` and `port`; port 0 picks a free one.

        A reverse proxy is reached by the host `names` and serves the page below
        `root_path`. TLS needs a `certificate` and its `key`, in one PEM file or two.
        """
        self.service, self.loopback = service, is_loopback(host)
        self._password = hashlib.sha256(password.encode()).digest() if password else b""
        self._names = {name.lower() for name in names}
        self._uploads = asyncio.Semaphore(UPLOADS)
        self._failing = asyncio.Lock()
        self._drawing = CapacityLimiter(2)
        tls = {"ssl_certfile": certificate, "ssl_keyfile": key}
        app = self._app(root_path.strip("/"))
        config = uvicorn.Config(app, http=_Connection, **_UVICORN, **tls)
        try:
            config.load()
        except OSError as error:
            reason = f"the certificate {certificate} cannot be used ({error})"
            raise SearchError(reason) from error
        self._server = uvicorn.Server(config)
        self._socket = _listening(host, port)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        name = f"[{host}]" if ":" in host else self.address[0]
        scheme = "https" if certificate else "http"
        self.url = f"{scheme}://{name}:{self.address[1]}/"

    def run(self) -> None:
        """Serve until `stop` is called or, in the main thread, a signal comes."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Make `run` return after the current answers are sent; from any thread."""
        self._server.should_exit = True

    def _app(self, root: str) -> Starlette:
        post = partial(Route, methods=["POST"])
        api = [
            Route("/gallery", self._about),
            post("/search", partial(self._ask, self.service.search)),
            post("/explain", partial(self._ask, self.service.explain)),
            post("/example", self._example),
        ]
        routes = [
            Mount("/api", routes=api),
            Route("/picture/{version}/{row}/{size}", self._picture),
            Mount("/", _Pages(directory=_PAGE, html=True)),
        ]
        if root:
            # Some proxies strip the prefix before they pass a request on, some do not.
            to_folder = Route(f"/{root}", lambda _: RedirectResponse(f"/{root}/"))
            routes = [to_folder, Mount(f"/{root}", routes=routes), *routes]
        guarded = Mount("/", routes=routes, middleware=[Middleware(self._guarded)])
        kinds = (HTTPException, SearchError, BusyError, ClientDisconnect, Exception)
        handlers = dict.fromkeys(kinds, _failed)
        return Starlette(routes=[guarded], exception_handlers=handlers)

    def _guarded(self, app: ASGIApp) -> ASGIApp:
        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            await self._check_caller(Request(scope))
            await app(scope, receive, send)

        return guarded

    async def _check_caller(self, request: Request) -> None:
        host = request.headers.get("Host", "").lower()
        if self.loopback or self._names:
            name = _name(host)
            if not (name in self._names or is_loopback(name)):
                raise HTTPException(403, "this server does not answer to that name")
        origin = request.headers.get("Origin")
        if origin is not None:
            asker = origin.lower().partition("://")[2]
            if asker != host and _name(asker) not in self._names:
                raise HTTPException(403, "another site's page asked")
        if self._password and not self._knows_password(request):
            async with self._failing:
                await asyncio.sleep(FAILURE_DELAY)
            challenge = {"WWW-Authenticate": 'Basic realm="search", charset="UTF-8"'}
            raise HTTPException(401, "wanted the password", challenge)

    def _knows_password(self, request: Request) -> bool:
        header = request.headers.get("Authorization", "")
        scheme, _, encoded = header.partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True).partition(b":")[2]
        except ValueError:
            return False
        # Digests have one length, so that the comparison says nothing of the password.
        same = hmac.compare_digest(hashlib.sha256(given).digest(), self._password)
        return scheme.lower() == "basic" and same

    async def _about(self, _: Request) -> Response:
        return _json(self.service.about())

    async def _picture(self, request: Request) -> Response:
        version, row, size = map(request.path_params.get, ("version", "row", "size"))
        if not (row.isascii() and row.isdigit() and len(row) < 12):
            raise HTTPException(404)
        draw = partial(self.service.picture, version, int(row), size)
        body = await to_thread.run_sync(draw, limiter=self._drawing)
        headers = {"Cache-Control": "private, max-age=600"}
        return Response(body, 200, headers, "image/jpeg")

    async def _ask(
        self, answer: Callable[[dict[str, Any]], dict[str, Any]], request: Request
    ) -> Response:
        body = await _body(request, "application/json", MAX_JSON)
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            raise SearchError("wanted one JSON object")
        return _json(await to_thread.run_sync(answer, asked))

    async def _example(self, request: Request) -> Response:
        if self._uploads.locked():
            raise BusyError("too many example pictures at once; try again in a moment")
        async with self._uploads:
            body = await _body(request, "application/octet-stream", MAX_UPLOAD)
            return _json(await to_thread.run_sync(self.service.keep_example, body))


class _Pages(StaticFiles):
    """The page's files; browsers revalidate them on every use."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


class _Connection(H11Protocol):
    """Closes connections that are too many, or too slow to bring a request."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_clock()

    def _watch(self) -> None:
        """Start the clock of a request that is not there yet, or stop it."""
        if self.cycle and not self.cycle.response_complete:
            self._stop_clock()
        elif self._deadline is None:
            close = self.transport.abort
            self._deadline = self.loop.call_later(REQUEST_SECONDS, close)

    def _stop_clock(self) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = None


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if not 0 <= port < 65536:
            raise OSError("no such port")
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = f"cannot listen on {host}:{port} ({error}); try another --port"
        raise SearchError(reason) from error


async def _failed(request: Request, error: Exception) -> Response:
    """Turn an error into an answer that tells no secrets."""
    # What is left of the request's body must not pass for the next request.
    headers = {"Connection": "close"}
    match error:
        case HTTPException():
            status, told = error.status_code, error.detail
            headers |= error.headers or {}
        case SearchError():
            status, told = 400, str(error)
        case BusyError():
            status, told = 503, str(error)
            headers["Retry-After"] = "1"
        case ClientDisconnect():
            status, told = 400, "the request broke off"
        case _:
            status, told = 500, "the server failed; see its log"
            where = (request.method, request.scope["path"])
            _log.error("%s %s failed", *where, exc_info=error)
    if status == 404:
        told = "there is nothing at this address"
    return _json({"error": told}, status, headers)


async def _body(request: Request, kind: str, limit: int) -> bytes:
    """Read a body of the wanted type; other sites' pages cannot send either."""
    if request.headers.get("Content-Type", "").partition(";")[0].strip() != kind:
        raise HTTPException(415, f"wanted {kind}")
    length = request.headers.get("Content-Length", "")
    chunked = "Transfer-Encoding" in request.headers
    if chunked or not (length.isascii() and length.isdigit()):
        raise HTTPException(411, "wanted a Content-Length")
    if len(length) > 12 or int(length) > limit:
        many = f"{length[:12]} bytes are too many, at most {limit} are taken"
        raise HTTPException(413, many)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.body()
    except TimeoutError as error:
        raise HTTPException(408, "the request came too slowly") from error


def _json(
    value: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    # Starlette's own JSONResponse fails at a file name that is not UTF-8.
    headers = {"Cache-Control": "no-store", **(headers or {})}
    return Response(json.dumps(value), status, headers, "application/json")


def _name(host: str) -> str:
    """Return a Host header without its port and brackets."""
    return (host if host.endswith("]") else host.rsplit(":", 1)[0]).strip("[]")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
