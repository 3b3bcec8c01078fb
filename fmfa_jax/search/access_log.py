# SPDX-License-Identifier: Apache-2.0
"""The access log of the server: a JSON object for each answer, one a line.

What people search for is left out unless that is asked for.
"""

import json
import logging
import sys
import time
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fmfa_jax.search.store import SearchError

_log = logging.getLogger(__name__)


class AccessLog:
    """Writes time, address, method, path, status, bytes and milliseconds."""

    def __init__(self, app: ASGIApp, *, path: str, queries: bool = False) -> None:
        """Open the log.

        Args:
            app: What is logged.
            path: The file, which is added to and may be moved at any time; "-" is
                standard error.
            queries: Whether to write what was searched for, too.
        """
        self._app, self._queries = app, queries
        try:
            if path != "-":
                open(path, "a").close()  # or refused before anything is served
        except OSError as error:
            raise SearchError(f"--access-log {path}: {error.strerror}") from error
        to_file = path != "-"
        self._handler = _Lines(path, delay=True) if to_file else logging.StreamHandler()

    def close(self) -> None:
        """Close the file; a further answer opens it again."""
        self._handler.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer and log one request."""
        start, status, sent = time.perf_counter(), 0, 0

        async def counted(message: Message) -> None:
            """Pass a message on, and count its bytes."""
            nonlocal status, sent
            status = message.get("status", status)
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            self._write(scope, status, sent, time.perf_counter() - start)

    def _write(self, scope: Scope, status: int, sent: int, seconds: float) -> None:
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "address": (scope.get("client") or ("",))[0],
            "method": scope["method"],
            "path": scope["path"],
            # 0: the client left, or was too slow to take an answer.
            "status": status,
            "bytes": sent,
            "ms": round(1000 * seconds, 1),
        }
        if self._queries and "query" in scope["state"]:
            line["query"] = scope["state"]["query"]
        record = logging.makeLogRecord({"msg": json.dumps(line)})
        self._handler.handle(record)


class _Lines(WatchedFileHandler):
    """A log that cannot be written is told once, and stops no server."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        if not self._told:
            told = "the access log cannot be written: %s"
            _log.warning(told, sys.exc_info()[1])
        self._told = True
