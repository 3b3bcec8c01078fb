# SPDX-License-Identifier: Apache-2.0
"""Connections to the server: how many there may be, and how slow.

A connection must bring its request, and take the answer, in time. When there are too
many, those that have idled longest make room, so that nobody can fill the server by
holding connections open.
"""

import asyncio
import contextlib
import ctypes
import socket
import struct
import sys
import time
from typing import Any

import uvicorn
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from fmfa_jax.search.callers import owner

CONNECTIONS = 512
CONNECTIONS_EACH = 128
"""Connections of one address."""
REQUEST_SECONDS = 10
"""Until a request's headers are there."""
ANSWER_SECONDS = 60
"""From then on until its answer is sent."""
LAST_SECONDS = 0.5
"""For a request that is on its way when the server is told to stop."""
HANDSHAKE_SECONDS = 0.1
"""For a connection that is being made when the server is told to stop."""

_full = JSONResponse(
    {"error": "too many connections at once; try again in a moment"},
    503,
    {"Retry-After": "1", "Connection": "close"},
)


class Connection(H11Protocol):
    """A connection with a clock."""

    _clock: asyncio.TimerHandle | None = None
    _answering: object = None
    _since = 0.0
    _stopping = False
    owner = ""
    """Whose it is; see `callers.owner`."""

    def connection_made(self, transport: Any) -> None:
        """Make room for it, or have its request answered with 503."""
        super().connection_made(transport)
        self.owner = owner(self.client[0] if self.client else "")
        self._watch()
        for most, everyone in ((CONNECTIONS_EACH, False), (CONNECTIONS, True)):
            crowd = [c for c in self.connections if everyone or c.owner == self.owner]
            idle = [each for each in crowd if each.idle and each is not self]
            if len(crowd) > most and idle:
                min(idle, key=lambda each: each._since).leave()
            elif len(crowd) > most:
                self.app = _full

    def data_received(self, data: bytes) -> None:
        """See `H11Protocol`."""
        super().data_received(data)
        self._watch()
        if self._stopping and not self.idle:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        """See `H11Protocol`."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `H11Protocol`."""
        super().connection_lost(exc)
        self._stop_clock()

    def shutdown(self) -> None:
        """Stop soon: what has come through the network may not be read yet."""
        if self.transport.is_closing():
            return
        if self._stopping or not self.idle:
            super().shutdown()
        else:
            self._stopping = True
            self.loop.call_later(LAST_SECONDS, self.shutdown)

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def leave(self) -> None:
        """Close an idle connection."""
        self.connections.discard(self)
        self.transport.abort()

    def _watch(self) -> None:
        """Start the clock anew when a request begins or ends."""
        answering = None if self.idle else self.cycle
        if self._clock and answering is self._answering:
            return
        self._stop_clock()
        if self.transport.is_closing():
            return
        # The loop's own clock counts in milliseconds where uvloop runs it.
        self._answering, self._since = answering, time.monotonic()
        seconds = ANSWER_SECONDS if answering else REQUEST_SECONDS
        self._clock = self.loop.call_later(seconds, self.transport.abort)

    def _stop_clock(self) -> None:
        if self._clock:
            self._clock.cancel()
        self._clock = None


class Listener(uvicorn.Server):
    """A server that takes up who has connected before it closes the door."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        for each in sockets or ():
            _let_nobody_knock(each)
        await asyncio.sleep(HANDSHAKE_SECONDS)  # the loop accepts all who wait
        await super().shutdown(sockets)


def _let_nobody_knock(listening: socket.socket) -> None:
    """Have Linux drop requests for a connection, which their senders repeat.

    It has connected whoever it tells of later, and would reset them when the socket is
    closed. Who asks again, after a second, is refused, or meets the next server.
    """
    if sys.platform != "linux":
        return
    # A classic BPF program: look at byte 13 of the TCP header, the flags; of a packet
    # with SYN among them keep nothing, else all.
    most = 2**32 - 1
    lines = (0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, most)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *x) for x in lines))
    program = struct.pack("HP", len(lines), ctypes.addressof(code))
    so_attach_filter = 26  # <asm-generic/socket.h>; Python has no name for it
    with contextlib.suppress(OSError):  # where a sandbox forbids it, some are reset
        listening.setsockopt(socket.SOL_SOCKET, so_attach_filter, program)
