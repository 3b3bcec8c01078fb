# SPDX-License-Identifier: Apache-2.0
r"""The search server under load: many people at once, and bad neighbours.

    python -m benchmarks.serve                      # 2,000 queries from 20 threads
    python -m benchmarks.serve --queries 20000      # is its memory steady?

A gallery of drawn people is indexed with the demo's starting weights and served by a
process of its own; every query is another sentence. Then 64 connections that send one
byte a second and 200 that send nothing are held open while a person searches. The
clients share the machine's cores with the server.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import common
from data_pipeline.synthetic import write_population

WORDS = (
    "a man woman in with red blue green black white jacket dress trousers shirt bag "
    "shoes hat long short hair"
).split()
SLOW, IDLE = 64, 200
HOST = "127.0.0.1"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=20)
    parser.add_argument("--people", type=int, default=100, help="two pictures of each")
    parser.add_argument("--seconds", type=float, default=10, help="of bad neighbours")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        index = indexed(Path(folder), options.people)
        with served(index) as (process, port):
            _measure(process.pid, port, options)


def indexed(folder: Path, people: int) -> Path:
    """Draw people, and index two pictures of each."""
    place = folder / "people"
    sizes = {"identities": people, "images_per_identity": 2, "test_identities": 0}
    write_population(place, **sizes)
    gallery, index = place / "CUHK-PEDES" / "imgs", folder / "people.index"
    model = common.ROOT / "configs" / "demo_start.safetensors"
    named = ["--model", model, "--tokenizer", place / "tokenizer", "--out", index]
    search = [sys.executable, "-m", "fmfa_jax.search"]
    subprocess.run([*search, "index", gallery, *named], check=True, cwd=common.ROOT)
    return index


@contextlib.contextmanager
def served(index: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """Run a server; yield its process and port."""
    command = [sys.executable, "-m", "fmfa_jax.search", "serve", index, "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=common.ROOT, stdout=pipe, text=True) as process:
        try:
            said = process.stdout.readline()
            yield process, int(re.search(r":(\d+)/", said)[1])
        finally:
            process.terminate()


def many(
    port: int, queries: int, threads: int, seed: int = 0
) -> tuple[list[float], Counter]:
    """Ask from several threads; return the seconds of answers, and the statuses."""
    seconds, statuses, turn = [], Counter(), iter(range(queries))

    def ask_on(number: int) -> None:
        """Ask until the turns are over; keep time and status of each."""
        rng = random.Random(f"{seed} {number}")
        for _ in turn:
            start = time.perf_counter()
            status = ask(port, " ".join(rng.choices(WORDS, k=8)))
            seconds.append(time.perf_counter() - start)
            statuses[status] += 1

    people = [threading.Thread(target=ask_on, args=(n,)) for n in range(threads)]
    for each in people:
        each.start()
    for each in people:
        each.join()
    return sorted(seconds), statuses


def ask(port: int, sentence: str) -> str:
    """Search once; return the status of the answer, or what went wrong."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    with contextlib.closing(connection):
        try:
            headers = {"Content-Type": "application/json"}
            body = json.dumps({"sentence": sentence})
            connection.request("POST", "/api/search", body, headers)
            answer = connection.getresponse()
            answer.read()
            return str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__


def beside_bad_neighbours(port: int, seconds: float) -> tuple[list[float], Counter]:
    """Search while others hold connections open and send next to nothing."""
    times, statuses = [], Counter()
    with contextlib.ExitStack() as stack:
        join = _joiner(stack, port)
        slow = [
            join(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-a: ") for _ in range(SLOW)
        ]
        for _ in range(IDLE):
            join(b"")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for each in slow:
                with contextlib.suppress(OSError):
                    each.sendall(b"b")
            start = time.perf_counter()
            statuses[ask(port, f"a man {len(times)} in red")] += 1
            times.append(time.perf_counter() - start)
            time.sleep(1)
    return sorted(times), statuses


def _joiner(stack: contextlib.ExitStack, port: int) -> Callable[[bytes], socket.socket]:
    def join(data: bytes) -> socket.socket:
        """Open a connection that sends only this."""
        made = stack.enter_context(socket.create_connection((HOST, port), timeout=5))
        made.sendall(data)
        return made

    return join


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _measure(pid: int, port: int, options: argparse.Namespace) -> None:
    ask(port, "a man")
    memory, part = [memory_mb(pid)], max(1, options.queries // 4)
    seconds, statuses, start = [], Counter(), time.perf_counter()
    for quarter in range(4):
        times, found = many(port, part, options.threads, quarter)
        seconds, statuses = seconds + times, statuses + found
        memory.append(memory_mb(pid))
    wall = time.perf_counter() - start
    crowd = f"{SLOW} slow and {IDLE} idle connections"
    rows = [_row(f"{4 * part} queries, {options.threads} threads", seconds, statuses)]
    beside = beside_bad_neighbours(port, options.seconds)
    rows.append(_row(f"one person, {crowd}", *beside))
    common.show(
        f"The search server, {2 * options.people} pictures",
        ("", "answered", "failed", "ms p50", "ms p99", "ms slowest"),
        rows,
        notes=[
            f"{4 * part / wall:.0f} queries a second. Resident memory before and after "
            f"each quarter, MB: {', '.join(f'{each:.0f}' for each in memory)}.",
        ],
    )


def _row(name: str, seconds: list[float], statuses: Counter) -> tuple[str, ...]:
    seconds = sorted(seconds)
    places = (len(seconds) // 2, int(0.99 * len(seconds)), len(seconds) - 1)
    failed = {status: n for status, n in statuses.items() if status != "200"}
    told = ", ".join(f"{n} x {status}" for status, n in failed.items()) or "0"
    times = [f"{1e3 * seconds[place]:.0f}" for place in places]
    return name, str(statuses["200"]), told, *times


if __name__ == "__main__":
    main()
