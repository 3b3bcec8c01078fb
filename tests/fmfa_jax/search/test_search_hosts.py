# SPDX-License-Identifier: Apache-2.0
"""Two real processes make the index that one makes; gloo joins them.

A process takes seconds to start, so one pair does everything (index_peer.py).
"""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image

from fmfa_jax import search
from fmfa_jax.search import IndexRecord, verify
from tests.compiling import quick
from tests.fmfa_jax.machines.hosts import free_port
from tests.fmfa_jax.search.indexes import content, same

ROOT = Path(__file__).parents[3]
PEER = Path(__file__).with_name("index_peer.py")
SMALL = {"batch_size": 4, "save_every": 8}


@dataclass(frozen=True)
class Pair:
    """What two processes left and said, and where."""

    folder: Path
    codes: list[int]
    said: list[str]


@pytest.fixture(scope="module")
def copy(shared_gallery, tmp_path_factory) -> Path:
    """The gallery elsewhere, a picture under another name, and a new one."""
    folder = shutil.copytree(
        shared_gallery, tmp_path_factory.mktemp("moved") / "gallery", symlinks=True
    )
    sorted(folder.rglob("*.jpg"))[3].rename(folder / "renamed.jpg")
    Image.new("RGB", (30, 60), "red").save(folder / "new.jpg")
    return folder


@pytest.fixture(scope="module")
def pair(shared_gallery, copy, model_file, population, tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp("hosts")
    arguments = [shared_gallery, copy, model_file, population / "tokenizer", folder]
    variables = quick() | {
        "PYTHONPATH": str(ROOT),
        "COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "NUM_PROCESSES": "2",
    }
    running = [
        subprocess.Popen(
            [sys.executable, str(PEER), *map(str, arguments)],
            env=os.environ | variables | {"PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        said = [each.communicate(timeout=300)[0] for each in running]
    finally:
        for each in running:
            each.kill()
    return Pair(folder, [each.returncode for each in running], said)


def as_one(gallery: Path, out: Path, encoder: search.IndexModel) -> IndexRecord:
    search.index_gallery(gallery, out, encoder, **SMALL)
    return search.read_record(out)


def test_two_processes_make_and_grow_the_index_of_one(
    pair, shared_gallery, copy, encoder, tmp_path
):
    """The same bytes, hence the same order, digests, bad files and embeddings."""
    as_one(shared_gallery, tmp_path / "one", encoder)
    change = search.add(tmp_path / "one", encoder, gallery=copy, **SMALL)
    assert change.reused == 1 and change.added == 2
    alone = search.read_record(tmp_path / "one")
    assert verify(pair.folder / "whole") == alone, pair.said
    assert f"{pair.folder}/whole: 24 pictures (24 added, 0 removed)" in pair.said[0]
    assert "25 pictures (2 added, 1 removed)" in pair.said[0]
    assert "not embedded again, their content is known: 1 of them" in pair.said[0]
    assert "pictures" not in pair.said[1].split("BLIND")[0]


def test_a_gallery_that_a_process_does_not_see_is_refused_on_both(pair):
    for said in pair.said:
        blind = said.split("BLIND ")[1].splitlines()[0]
        assert "missing on process 1 (" in blind and "on all hosts" in blind
    assert not (pair.folder / "blind" / "index.json").exists()


def test_a_process_that_dies_leaves_what_is_committed_and_any_number_goes_on(
    pair, shared_gallery, encoder, tmp_path
):
    assert pair.codes[1] == -signal.SIGKILL and pair.codes[0] not in (0, None)
    assert "process 0 of 2 ends: " in pair.said[0] or "task died" in pair.said[0]
    killed = pair.folder / "killed"
    part = verify(killed)
    assert 0 < part.rows + len(part.bad) == 8
    whole = as_one(shared_gallery, tmp_path / "one", encoder)
    ended = as_one(shared_gallery, killed, encoder)
    assert same(content(killed), content(tmp_path / "one"))
    nameless = [replace(each, name="") for each in ended.shards]
    assert nameless == [replace(each, name="") for each in whole.shards]
    assert ended.bad == whole.bad
