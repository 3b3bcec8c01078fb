# SPDX-License-Identifier: Apache-2.0
"""A server in a thread, and ways to talk to it."""

import base64
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from fmfa_jax.search.query import Searcher
from fmfa_jax.search.server import SearchServer
from fmfa_jax.search.service import Service

JSON = {"Content-Type": "application/json"}
BYTES = {"Content-Type": "application/octet-stream"}
WAIT = 20


@contextlib.contextmanager
def running(searcher: Searcher, **settings: Any) -> Iterator[SearchServer]:
    server = SearchServer(Service(searcher), host="127.0.0.1", port=0, **settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


def send(server, method, path, body=None, headers=None):
    """Send one request; returns status, headers and body."""
    connection = http.client.HTTPConnection(*server.address, timeout=WAIT)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def get(server, path, **headers):
    """Return the status and value of a JSON answer."""
    status, _, body = send(server, "GET", path, headers=headers)
    return status, json.loads(body)


def post(server, path, **values):
    status, _, body = send(server, "POST", path, json.dumps(values), JSON)
    return status, json.loads(body)


def talk(server, data, seconds=WAIT):
    """Send bytes as they are; returns all that comes until the server closes."""
    with socket.create_connection(server.address, timeout=seconds) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def credentials(password: str) -> dict[str, str]:
    encoded = base64.b64encode(f"me:{password}".encode()).decode()
    return {"Authorization": f"Basic {encoded}"}


def until(true: Callable[[], object]) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
