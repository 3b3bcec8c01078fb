# SPDX-License-Identifier: Apache-2.0
"""The web page of an index: a small server over one static page.

Gradio was weighed and not taken: regions laid over a picture word by word, focus that
the arrow keys move, a phone's layout and strict headers would all have been custom HTML
and JavaScript in it too, on top of dozens of packages, analytics that are on unless
turned off, and files served by path. A page of our own needs the standard library
alone, loads at once, and is tested as it is shipped.

What the server gives away: its own page files, and pictures of the index by NUMBER,
decoded and drawn anew, so that no other file can come out. It listens on the loopback
unless told otherwise; there it answers to its own names only, which keeps other sites'
pages from reaching it through a name that leads to 127.0.0.1.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import logging
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fmfa_jax.search.service import MAX_UPLOAD, BusyError, Service
from fmfa_jax.search.store import SearchError

MAX_JSON = 16 * 1024
CONNECTIONS = 64
FAILURE_DELAY = 0.5
"""Seconds before a wrong password is answered."""
_PAGE = Path(__file__).parent / "page"
_PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/detail.js": ("detail.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
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
_log = logging.getLogger(__name__)


class RefusedError(Exception):
    """A request that is not answered as it was meant."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class SearchServer(ThreadingHTTPServer):
    """Serves one index until it is shut down."""

    daemon_threads = True

    def __init__(
        self, service: Service, *, host: str, port: int, password: str = ""
    ) -> None:
        """Listen.

        Args:
            service: what answers.
            host: the address to bind.
            port: 0: a free one.
            password: asked for by the browser; empty: none.

        Raises:
            SearchError: the address cannot be bound.
        """
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.service = service
        self.password = password
        self.loopback = is_loopback(host)
        self._slots = threading.BoundedSemaphore(CONNECTIONS)
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise SearchError(
                f"cannot listen on {host}:{port} ({error}); try another --port"
            ) from error

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        return (
            f"http://[{host}]:{port}/" if ":" in str(host) else f"http://{host}:{port}/"
        )

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread, unless there are too many."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong with a connection, such as one that broke off."""
        _log.info("connection with %s ended", client_address, exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """Answers one request after another of a connection."""

    server: SearchServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "search", ""
    timeout = 30

    def do_GET(self) -> None:
        """Send a page file, a picture, or what is searched."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Search, explain, or take an example picture."""
        self._answer(self._post)

    def _answer(self, act: Any) -> None:
        try:
            self._check_caller()
            body, kind, cache = act()
            status = HTTPStatus.OK
        except (RefusedError, SearchError, BusyError) as error:
            status, cache = _status(error), "no-store"
            kind, body = _JSON, _json({"error": str(error)})
        except Exception:
            _log.exception("%s %s failed", self.command, self.path)
            status, cache = HTTPStatus.INTERNAL_SERVER_ERROR, "no-store"
            kind, body = _JSON, _json({"error": "the server failed; see its log"})
        if status != HTTPStatus.OK or self._has_unread_body():
            self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", cache)
        if self.close_connection:
            self.send_header("Connection", "close")
        if status == HTTPStatus.UNAUTHORIZED:
            self.send_header(
                "WWW-Authenticate", 'Basic realm="search", charset="UTF-8"'
            )
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def _has_unread_body(self) -> bool:
        """Whether bytes may follow that would be taken for the next request."""
        named = ("Content-Length", "Transfer-Encoding")
        return self.command == "GET" and any(name in self.headers for name in named)

    def _get(self) -> tuple[bytes, str, str]:
        path = urlsplit(self.path).path
        if path in _PAGES:
            name, kind = _PAGES[path]
            return (_PAGE / name).read_bytes(), kind, "no-cache"
        if path == "/api/gallery":
            return _json(self.server.service.about()), _JSON, "no-store"
        match path.split("/"):
            case ["", "picture", version, row, size] if _is_number(row):
                body = self.server.service.picture(version, int(row), size)
                return body, "image/jpeg", "private, max-age=600"
        raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing at this address")

    def _post(self) -> tuple[bytes, str, str]:
        service, path = self.server.service, urlsplit(self.path).path
        if path == "/api/example":
            body = self._body("application/octet-stream", MAX_UPLOAD)
            return _json(service.keep_example(body)), _JSON, "no-store"
        acts = {"/api/search": service.search, "/api/explain": service.explain}
        if path not in acts:
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        try:
            asked = json.loads(self._body("application/json", MAX_JSON))
        except (ValueError, RecursionError) as error:
            raise SearchError("wanted one JSON object") from error
        if not isinstance(asked, dict):
            raise SearchError("wanted one JSON object")
        return _json(acts[path](asked)), _JSON, "no-store"

    def _body(self, kind: str, limit: int) -> bytes:
        """Read the body of the wanted type; other sites' pages cannot send either."""
        if self.headers.get_content_type() != kind:
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"wanted {kind}")
        length = self.headers.get("Content-Length", "")
        chunked = "Transfer-Encoding" in self.headers
        if chunked or not (length.isascii() and length.isdigit()):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "wanted a Content-Length")
        if len(length) > 12 or int(length) > limit:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{length[:12]} bytes are too many, at most {limit} are taken",
            )
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the request broke off")
        return body

    def _check_caller(self) -> None:
        host = self.headers.get("Host", "")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self.server.loopback and not is_loopback(name.lower().strip("[]")):
            raise RefusedError(
                HTTPStatus.FORBIDDEN, "this server answers to localhost only"
            )
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise RefusedError(HTTPStatus.FORBIDDEN, "another site's page asked")
        if self.server.password and not self._knows_password():
            time.sleep(FAILURE_DELAY)
            raise RefusedError(HTTPStatus.UNAUTHORIZED, "wanted the password")

    def _knows_password(self) -> bool:
        scheme, _, encoded = self.headers.get("Authorization", "").partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return False
        # Digests have one length, so that the comparison tells nothing of the password.
        wanted = hashlib.sha256(self.server.password.encode()).digest()
        same = hmac.compare_digest(hashlib.sha256(given).digest(), wanted)
        return scheme.lower() == "basic" and same

    def end_headers(self) -> None:
        """Add the headers that every answer has."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log requests, which hold no sentence, where the user wants to see them."""
        _log.info("%s %s", self.address_string(), format % args)


_JSON = "application/json"


def _is_number(text: str) -> bool:
    """Whether a text is a number that a row can have."""
    return text.isascii() and text.isdigit() and len(text) < 12


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("ascii")


def _status(error: Exception) -> HTTPStatus:
    if isinstance(error, RefusedError):
        return error.status
    if isinstance(error, BusyError):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.BAD_REQUEST
