# SPDX-License-Identifier: Apache-2.0
"""A server process under load for minutes, and indexes with many flipped bits."""

import random
import shutil
import signal
import threading
import time

import pytest

from benchmarks import serve
from fmfa_jax import search
from fmfa_jax.search.store import SearchError
from tests.fmfa_jax.search.indexes import flipped

pytestmark = pytest.mark.soak
REFUSED = "ConnectionRefusedError"


@pytest.fixture(scope="module")
def served_index(tmp_path_factory):
    return serve.indexed(tmp_path_factory.mktemp("load"), 100)


def test_twenty_thousand_queries_leave_memory_as_it_is(served_index):
    with serve.served(served_index) as (process, port):
        serve.many(port, 2000, 20, seed=-1)
        before = serve.memory_mb(process.pid)
        for part in range(10):
            seconds, statuses = serve.many(port, 2000, 20, seed=part)
            assert statuses == {"200": 2000}
            print(f"2000 answered, p99 {1e3 * seconds[1980]:.0f} ms")
        grown = serve.memory_mb(process.pid) - before
        print(
            f"20000 queries: memory {before:.0f} MB, and {grown:.0f} MB more after it"
        )
        assert grown < 30
        _, statuses = serve.beside_bad_neighbours(port, 30)
        assert set(statuses) == {"200"}


@pytest.mark.parametrize("attempt", range(10))
def test_what_runs_when_sigterm_comes_is_answered(served_index, attempt):
    found = []
    with serve.served(served_index) as (process, port):
        serve.many(port, 100, 8)
        load = threading.Thread(
            target=lambda: found.append(serve.many(port, 4000, 8, seed=attempt))
        )
        load.start()
        time.sleep(0.3 + 0.05 * attempt)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
        load.join()
    _, statuses = found[0]
    print(dict(statuses))
    # Connections that were never accepted are refused or reset.
    lost = {s: n for s, n in statuses.items() if s not in ("200", REFUSED)}
    assert statuses["200"] > 0 and not lost


def test_five_hundred_flipped_bits_are_found(index, tmp_path):
    copy, rng, refused = shutil.copytree(index, tmp_path / "copy"), random.Random(5), 0
    paths = [copy / "index.json", *(copy / "shards").iterdir()]
    for path in 250 * paths:
        sound = path.read_bytes()
        flipped(path, rng)
        try:
            search.verify(copy)
        except SearchError as error:
            refused += path.name in str(error)
        path.unlink()
        path.write_bytes(sound)
    print(f"{refused} of 500 flipped bits refused")
    assert refused == 500
