# SPDX-License-Identifier: Apache-2.0
"""Runs whose folder, data and first weights lie in a store: the bits of a local run."""

import json
import os
import shutil
from pathlib import Path

import jax
import pytest
from safetensors.numpy import load_file

from data_pipeline.buckets import Bucket
from fmfa_jax import models, weights
from fmfa_jax.run import manifests
from fmfa_jax.training import loop
from fmfa_jax.training.judge import BEST, LAST
from fmfa_jax.training.session import open_session
from tests.tiny_run import DEVICES, tiny_config, train_until_killed

SHORT = {"train__stop_step": 8}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The user's cache folder, of this process and of those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(place))
        yield place


@pytest.fixture(scope="module")
def start(folder):
    """First weights, in a file."""
    session = open_session(tiny_config(folder), str(folder / "never"), devices=few())
    path, model = folder / "start.safetensors", session.model
    weights.save_native(path, models.init_params(model, 7), model.portable)
    return path


@pytest.fixture(scope="module")
def local(folder, start):
    """The run, on a disk."""
    config = tiny_config(folder, init__path=str(start), **SHORT)
    loop.train(config, str(folder / "local"), devices=few())
    return folder / "local"


def few():
    return jax.devices()[:DEVICES]


def stored(url: str, folder: Path, start: Path) -> dict[str, str]:
    """Put data, tokenizer and first weights into a store; the config's changes."""
    root = (folder / "population").resolve()
    files = [path for path in root.rglob("*") if path.is_file()]
    Bucket(f"{url}/data").put(root, [p.relative_to(root).as_posix() for p in files])
    Bucket(url).put(start.parent, [start.name])
    return {
        "data__root": f"{url}/data",
        "data__tokenizer": f"{url}/data/tokenizer",
        "init__path": f"{url}/{start.name}",
    }


def lines(run: Path) -> list[dict]:
    """The log, without speeds."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]


def assert_same_run(local: Path, url: str, copy: Path) -> None:
    """A run in a store has left what the local one has, bit by bit."""
    found = Bucket(url).list()
    Bucket(url).get(found, copy)
    for name in (LAST, BEST):
        ours, theirs = load_file(local / name), load_file(copy / name)
        assert ours.keys() == theirs.keys()
        assert all((ours[each] == theirs[each]).all() for each in ours), name
    assert lines(local) == lines(copy)
    steps = [path.name for path in (local / "checkpoints").iterdir()]
    assert sorted(steps) == sorted(p.name for p in (copy / "checkpoints").iterdir())
    for step in steps:
        ours, theirs = (
            manifests.verify(x / "checkpoints" / step) for x in (local, copy)
        )
        assert (ours.step, ours.identity) == (theirs.step, theirs.identity)
    shutil.rmtree(copy / "locks")
    assert plain_files(local) == plain_files(copy)
    assert json.loads((copy / "config.json").read_text())["data.root"].startswith(
        url[:5]
    )


def plain_files(run: Path) -> set[str]:
    names = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    return {name for name in names if not name.startswith(("checkpoints/", "lock"))}


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_killed_and_resumed_in_a_store(kind, folder, local, start, stores, cache):
    url = stores.url(kind, f"{folder.name}-{os.getpid()}")
    changes = stored(url, folder, start) | SHORT
    run, seal = f"{url}/run", "checkpoints/5/manifest.json"
    there = Bucket(run)
    train_until_killed(
        folder, run, after=5, saved=lambda: there.read(seal) is not None, **changes
    )
    assert LAST not in there.list(), "killed before its end"
    loop.train(tiny_config(folder, **changes), run, devices=few())
    assert_same_run(local, run, folder / kind)
    loop.evaluate(tiny_config(folder, **changes), run, devices=few())


def test_stopped_and_resumed_in_memory(folder, local, start, stores, cache, capsys):
    url = stores.url("memory", folder.name)
    changes = stored(url, folder, start)
    early = tiny_config(folder, **changes, train__stop_step=5, eval__split="none")
    loop.train(early, f"{url}/run", devices=few())
    Bucket(f"{url}/run").remove([LAST])  # of the early stop
    shutil.rmtree(cache)  # another host, but for the lock that was left in order
    loop.train(tiny_config(folder, **changes, **SHORT), f"{url}/run", devices=few())
    assert_same_run(local, f"{url}/run", folder / "memory")
    said = capsys.readouterr().out
    assert f"run folder: {url}/run\nresumed after step 5 of 8" in said
