# SPDX-License-Identifier: Apache-2.0
"""The web page of an index: Starlette on uvicorn over one static page.

What the server gives away: its own page files, and pictures of the index by NUMBER,
decoded and encoded anew, so that no other file can come out.

No client can hold up another: see `connections` and `callers`. Work that does not fit
is refused with 503.
"""

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from anyio import CapacityLimiter, fail_after, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from fmfa_jax.search.access_log import AccessLog
from fmfa_jax.search.callers import Password, Places, check_names, is_loopback
from fmfa_jax.search.connections import Connection, Listener
from fmfa_jax.search.service import MAX_UPLOAD, WAITING, BusyError, Service
from fmfa_jax.search.store import SearchError

MAX_JSON, MAX_SENTENCES = 16 * 1024, 128 * 1024
"""Bytes of a question, and of one with many sentences."""
REQUESTS, REQUESTS_EACH = 256, 64
"""Requests that are worked on or wait for it: in all, and of one address."""
UPLOADS, UPLOADS_EACH = 8, 4
"""Example pictures that are received at a time: in all, and from one address."""
BODY_SECONDS = 30
PICTURE_SECONDS = 10
"""How long a picture may wait to be drawn."""
_PAGE = Path(__file__).parent / "page"
OPENAPI = Path(__file__).parent / "openapi.json"
"""Describes what lies below /v1, which keeps its meaning."""
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
    "server_header": False,
    "headers": list(_HEADERS.items()),
    # Requests that run when the server is told to stop are answered.
    "timeout_graceful_shutdown": 20,
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
        access_log: str = "",
        log_queries: bool = False,
    ) -> None:
        """Listen on `host` and `port`; port 0 picks a free one.

        A reverse proxy is reached by the host `names` and serves the page below
        `root_path`; whom it asks for, it says by X-Forwarded-For, which is believed of
        the addresses in $FORWARDED_ALLOW_IPS, by default 127.0.0.1. TLS needs a
        `certificate` and its `key`, in one PEM file or two. For `access_log` and
        `log_queries` see `AccessLog`.
        """
        self.service, self.loopback = service, is_loopback(host)
        self._password = Password(password)
        self._names = {name.lower() for name in names}
        self._uploads = Places(UPLOADS, UPLOADS_EACH)
        self._requests = Places(REQUESTS, REQUESTS_EACH)
        self._drawing = CapacityLimiter(2)
        self._looking = CapacityLimiter(4)  # they wait where an index is reopened
        # Threads that wait for the model keep none of the others' from their work.
        self._thinking = CapacityLimiter(WAITING + 2)
        tls = {"ssl_certfile": certificate, "ssl_keyfile": key}
        self.application = self._app(root_path.strip("/"))
        app: ASGIApp = self.application
        self._log = None
        if access_log:
            app = self._log = AccessLog(app, path=access_log, queries=log_queries)
        options = {**_UVICORN, **tls, "proxy_headers": bool(self._names)}
        config = uvicorn.Config(app, http=Connection, **options)
        try:
            config.load()
        except OSError as error:
            reason = f"the certificate {certificate} cannot be used ({error})"
            raise SearchError(reason) from error
        self._server = Listener(config)
        self._socket = _listening(host, port)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        name = f"[{host}]" if ":" in host else self.address[0]
        scheme = "https" if certificate else "http"
        self.url = f"{scheme}://{name}:{self.address[1]}/"

    def run(self) -> None:
        """Serve until `stop` is called or, in the main thread, a signal comes."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            if self._log:
                self._log.close()

    def stop(self) -> None:
        """Make `run` return after the current answers are sent; from any thread."""
        self._server.should_exit = True

    def _app(self, root: str) -> Starlette:
        post = partial(Route, methods=["POST"])
        sentence = "sentence", MAX_JSON
        api = [
            Route("/gallery", self._about),
            post("/search", partial(self._ask, self.service.search, *sentence)),
            post("/explain", partial(self._ask, self.service.explain, *sentence)),
            post("/example", self._example),
        ]
        each_sentence = self.service.search_all, "sentences", MAX_SENTENCES
        picture = Route("/picture/{version}/{row}/{size}", self._picture)
        stable = [
            Route("/openapi.json", _described),
            Route("/gallery", self._about),
            post("/search", partial(self._ask, *each_sentence)),
            post("/example", self._example),
            picture,
        ]
        private: list[Route | Mount] = [
            Mount("/v1", routes=stable),
            # Of the page; they change with it.
            Mount("/api", routes=api),
            picture,
            Mount("/", _Pages(directory=_PAGE, html=True)),
        ]
        routes = [
            Route("/health", _health),
            Route("/ready", self._ready),
            Mount("/", routes=private, middleware=[Middleware(self._with_password)]),
        ]
        if root:
            # Some proxies strip the prefix before they pass a request on, some do not.
            to_folder = Route(f"/{root}", partial(_to_folder, f"/{root}/"))
            routes = [to_folder, Mount(f"/{root}", routes=routes), *routes]
        guarded = Mount("/", routes=routes, middleware=[Middleware(self._by_name)])
        kinds = (HTTPException, SearchError, BusyError, ClientDisconnect, Exception)
        handlers = dict.fromkeys(kinds, _failed)
        return Starlette(routes=[guarded], exception_handlers=handlers)

    def _by_name(self, app: ASGIApp) -> ASGIApp:
        return _checked(
            app, partial(check_names, names=self._names, loopback=self.loopback)
        )

    def _with_password(self, app: ASGIApp) -> ASGIApp:
        return _checked(app, self._password.check)

    async def _ready(self, _: Request) -> Response:
        if await to_thread.run_sync(self.service.ready, limiter=self._looking):
            return _json({"status": "ready"})
        return _json({"status": "the index cannot be opened again; see the log"}, 503)

    async def _about(self, _: Request) -> Response:
        about = self.service.about
        return _json(await to_thread.run_sync(about, limiter=self._looking))

    async def _picture(self, request: Request) -> Response:
        version, row, size = map(request.path_params.get, ("version", "row", "size"))
        if not (row.isascii() and row.isdigit() and len(row) < 12):
            raise HTTPException(404)
        draw = partial(self.service.picture, version, int(row), size)
        try:
            with self._requests.taken(request):
                # Not asyncio's, which would give the place away while the thread runs.
                with fail_after(PICTURE_SECONDS):
                    body = await to_thread.run_sync(draw, limiter=self._drawing)
        except TimeoutError as error:
            raise BusyError("too many pictures at once; try again") from error
        headers = {"Cache-Control": "private, max-age=600"}
        return Response(body, 200, headers, "image/jpeg")

    async def _ask(
        self,
        answer: Callable[[dict[str, Any]], dict[str, Any]],
        query: str,
        limit: int,
        request: Request,
    ) -> Response:
        """Answer a JSON object; what is looked for is its value named `query`."""
        body = await _body(request, "application/json", limit)
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            raise SearchError("wanted one JSON object")
        request.state.query = asked.get(query)
        with self._requests.taken(request):
            return _json(
                await to_thread.run_sync(answer, asked, limiter=self._thinking)
            )

    async def _example(self, request: Request) -> Response:
        with self._uploads.taken(request):
            body = await _body(request, "application/octet-stream", MAX_UPLOAD)
            keep = self.service.keep_example
            return _json(await to_thread.run_sync(keep, body, limiter=self._thinking))


async def _described(_: Request) -> Response:
    return Response(OPENAPI.read_bytes(), 200, media_type="application/json")


async def _health(_: Request) -> Response:
    """In the event loop: no thread that waits for an index can hold it up."""
    return _json({"status": "ok"})


async def _to_folder(place: str, _: Request) -> Response:
    return RedirectResponse(place)


def _checked(app: ASGIApp, check: Callable[[Request], None]) -> ASGIApp:
    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        check(Request(scope))
        await app(scope, receive, send)

    return checked


class _Pages(StaticFiles):
    """The page's files; browsers revalidate them on every use."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """See `StaticFiles`."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


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
