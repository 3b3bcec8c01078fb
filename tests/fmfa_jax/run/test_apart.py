# SPDX-License-Identifier: Apache-2.0
"""Two processes that share a run folder in a store, and nothing else."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.buckets import Bucket
from fmfa_jax.run.bucket_lock import BucketLock
from fmfa_jax.run.lock import LOCK
from tests.compiling import quick
from tests.stores import REFUSAL

ROOT = Path(__file__).parents[3]
PEER = Path(__file__).with_name("apart_peer.py")


@pytest.fixture(scope="module")
def url(stores):
    """Where the run folders lie; one is in use, and a step of each is refused."""
    place = stores.url("s3", f"apart-{os.getpid()}")
    fault = b"/2/manifest.json"
    stores.line("s3").fail(fault, answer=REFUSAL, times=2)
    return place


@pytest.fixture(scope="module")
def peers(url, tmp_path_factory):
    """The reports of both processes."""
    folder = tmp_path_factory.mktemp("apart")
    (folder / LOCK).touch()
    rival = BucketLock(Bucket(f"{url}/busy"), folder, say=print, refresh=0.1)
    rival.take()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = [start(folder, url, address, index) for index in (0, 1)]
    try:
        told = [each.communicate(timeout=240) for each in started]
    finally:
        for each in started:
            each.kill()
        rival.release()
    assert [each.returncode for each in started] == [0, 0], told
    lines = [out[out.index("REPORT ") :].splitlines()[0] for out, _ in told]
    return [json.loads(line.removeprefix("REPORT ")) for line in lines]


def start(folder, url, address, index):
    variables = quick(2) | {
        "PYTHONPATH": str(ROOT),
        "COORDINATOR_ADDRESS": address,
        "NUM_PROCESSES": "2",
        "PROCESS_ID": str(index),
        "XDG_CACHE_HOME": str(folder / f"cache-{index}"),
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(
        [sys.executable, str(PEER), url],
        cwd=folder,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_save_that_the_store_refuses_counts_as_failed_on_both(peers, url):
    said = [peer["saved"]["said"] for peer in peers]
    assert len(said[0]) == 1 and "step 2 could not be saved" in said[0][0]
    assert "(1 in a row" in said[0][0] and said[1] == []
    errors = [peer["failed"]["error"] for peer in peers]
    assert errors[0].startswith("SaveError: step 2 could not be saved: s3://")
    assert errors[1].startswith("SaveError: process 0: step 2 could not be saved: s3")
    there = Bucket(f"{url}/failed").list()
    assert {name for name in there if "manifest.json" in name} == {
        "checkpoints/1/manifest.json"
    }


def test_the_store_has_what_each_has_written(peers):
    for peer in peers:
        there = peer["there"]
        seals = [name for name in there if name.endswith("manifest.json")]
        assert seals == [f"checkpoints/{step}/manifest.json" for step in (1, 3)]
        assert {"of-0", "of-1", "table-0", "table-1"} <= {*there}


def test_each_measures_from_a_copy_without_checkpoints(peers):
    for index, peer in enumerate(peers):
        assert peer["measured"] == ["of-0", "of-1", f"table-{index}"]


@pytest.mark.parametrize("place", ["restored", "spread"])
def test_each_restores_from_the_store_what_it_needs(peers, place):
    for peer in peers:
        assert peer[place]["step"] == 3 and peer[place]["same"]
    assert [peer[place]["left"] for peer in peers] == [["1", "3"], []]


def test_a_copy_that_one_cannot_use_is_used_by_none(peers):
    for peer in peers:
        assert peer["damaged"]["step"] == 1 and peer["damaged"]["same"]


def test_processes_with_other_folders_are_refused_before_anything_is_written(
    peers, url
):
    for peer in peers:
        for case in ("apart", "mixed"):
            assert peer[case].startswith("ValueError: the processes of this run dis")
            assert "--workdir" in peer[case] and "on process 1" in peer[case]
        assert f'"{url}/run-1" on process 1' in peer["apart"]
        assert '"on a disk" on process 1' in peer["mixed"]
    left = Bucket(url).list()
    assert not [name for name in left if name.startswith(("run-", "mixed"))]


def test_a_folder_in_use_is_refused_on_both(peers):
    assert peers[0]["busy"].startswith("InUseError: the run folder s3://")
    assert "failed on other processes:\n  process 0: InUseError: " in peers[1]["busy"]
