# SPDX-License-Identifier: Apache-2.0
"""A run folder in real life: moved, shared, mended, damaged, out of room."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fmfa_jax import weights
from fmfa_jax.run.checkpoints import CheckpointMismatchError
from fmfa_jax.run.lock import FolderLock, InUseError
from fmfa_jax.training.judge import BEST, LAST, Judge
from fmfa_jax.training.session import open_session
from tests.tiny_run import change_data, evaluate, tiny_config, train

SPEEDS = {"steps_per_second", "pairs_per_second", "model_flops_per_second"}


def config(folder, **changes):
    """The first epoch of the tiny run: 8 steps, then a save and an evaluation."""
    changes = {"train__stop_step": 8, "checkpoint__every_steps": 8} | changes
    return tiny_config(folder, **changes)


@pytest.fixture(scope="module")
def whole(folder):
    train(config(folder), folder / "whole")
    return folder / "whole"


class Killed(BaseException):
    """What a kill between the save and the evaluation leaves is what this leaves."""


@pytest.fixture(scope="module")
def killed(folder, whole):
    """The same run, which has saved its last step and has not evaluated it."""

    def killed(*_, **__):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judge, "keep_best", killed)
        with pytest.raises(Killed):
            train(config(folder), folder / "killed")
    left = {path.name for path in (folder / "killed").iterdir()}
    assert "checkpoints" in left and not {BEST, LAST} & left
    assert rows(folder / "killed") == rows(whole)[:-1]
    return folder / "killed"


@pytest.fixture
def run(killed, tmp_path):
    """A copy of the killed run."""
    return Path(shutil.copytree(killed, tmp_path / "run"))


def rows(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in SPEEDS} for line in lines]


def test_a_moved_run_makes_up_for_the_evaluation_that_it_missed(
    folder, whole, run, tmp_path
):
    """With its data and tokenizer elsewhere, it ends as if nothing had happened."""
    population = Path(shutil.copytree(folder / "population", tmp_path / "people"))
    tokenizer = Path(shutil.move(population / "tokenizer", tmp_path / "words"))
    moved = {"data__root": str(population), "data__tokenizer": str(tokenizer)}
    train(config(folder, **moved), run)
    assert rows(run) == rows(whole)
    for name in (BEST, LAST):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def without_last(split):
    return replace(split, pairs=split.pairs[:-1])


def test_a_mended_test_annotation_is_said_and_what_is_foreign_is_set_aside(
    folder, whole, run, monkeypatch, capsys
):
    change_data(monkeypatch, val=without_last)
    for name in (BEST, LAST):
        shutil.copy(whole / name, run)
    (run / LAST).write_bytes((run / LAST).read_bytes()[:1000])
    log = run / "metrics.jsonl"
    damaged = b"\n\xff\xfe\n" + log.read_bytes() + b'{"step": 3, "to'
    log.write_bytes(damaged)
    train(config(folder), run)
    said = capsys.readouterr().out
    assert f"changed since {run}/checkpoints/8 was saved: val captions; train" in said
    assert f"{BEST} was chosen on another split, or another state of it: set" in said
    assert f"{LAST} cannot be read (" in said
    assert "metrics.jsonl: 1 lines cannot be read" in said
    for name in (BEST, LAST):
        assert (run / f"{name}.aside").is_file() and (run / name).is_file()
    assert (run / "metrics.jsonl.damaged").read_bytes() == damaged
    steps = [row["step"] for row in rows(run) if "total" in row]
    assert steps == list(range(1, 9)) and "val/r1" in rows(run)[-1]
    assert weights.read_archive(run / BEST).metadata["chosen_on"] == "val"


def test_other_captions_to_learn_from_are_refused_in_words(folder, run, monkeypatch):
    def mended(split):
        first, *others = split.pairs
        return replace(split, pairs=(replace(first, caption="mended"), *others))

    change_data(monkeypatch, train=mended)
    with pytest.raises(CheckpointMismatchError) as error:
        train(config(folder), run)
    assert str(error.value).splitlines()[1:-1] == [
        "  train captions: not those of the checkpoint"
    ]


@pytest.fixture(scope="module")
def session(folder):
    return open_session(config(folder), str(folder / "never"))


FOREIGN = {
    "of another run": {"run": "0" * 64},
    "of an earlier version": {"run": None},
    "of another split": {"chosen_on": "test"},
    "without a step": {"step": "last"},
    "with a word for a score": {"score": "abc"},
    "with no number for a score": {"score": "nan"},
    "with too high a score": {"score": "101"},
}


@pytest.mark.parametrize("name", [*FOREIGN, "its own"])
def test_the_best_that_does_not_belong_is_set_aside(session, whole, tmp_path, name):
    loaded = weights.load_params(whole / BEST)
    facts = dict(weights.read_archive(whole / BEST).metadata)
    wanted = {"run", "step", "score", "chosen_on", "split"}
    assert wanted <= facts.keys()
    facts = {key: facts[key] for key in wanted} | FOREIGN.get(name, {})
    facts = {key: value for key, value in facts.items() if value is not None}
    weights.save_native(tmp_path / BEST, loaded.params, loaded.config, facts)
    said = []
    own = weights.read_archive(whole / BEST).metadata["run"]
    judge = Judge(replace(session, workdir=tmp_path), said.append, run=own)
    judge.set_foreign_aside()
    assert bool(said) == (tmp_path / f"{BEST}.aside").exists() == (name in FOREIGN)


def test_a_run_in_use_is_refused_and_can_be_evaluated(folder, whole):
    before = rows(whole)
    with FolderLock(whole):
        with pytest.raises(InUseError, match=f"process {os.getpid()} on"):
            train(config(folder), whole)
        evaluate(config(folder), whole)
    assert rows(whole) == before
