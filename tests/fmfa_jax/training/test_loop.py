# SPDX-License-Identifier: Apache-2.0
"""Whole runs: what they leave behind, and that an interruption leaves no trace."""

import hashlib
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from data_pipeline.captions import Captions
from data_pipeline.examine import UnreadablePicturesError
from fmfa_jax import weights
from fmfa_jax.run.belonging import CheckpointMismatchError
from fmfa_jax.run.lock import FolderLock, InUseError
from fmfa_jax.training.judge import BEST, LAST, Judge
from fmfa_jax.training.session import open_session
from tests.tiny_run import (
    change_data,
    evaluate,
    started,
    tiny_config,
    train,
    train_until_killed,
)

SPEEDS = {"steps_per_second", "pairs_per_second", "model_flops_per_second"}


@pytest.fixture(scope="module")
def whole(folder):
    """Twelve steps in one go."""
    train(tiny_config(folder), folder / "whole")
    return folder / "whole"


def lines(run: Path) -> list[dict]:
    return [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_weights(one: Path, other: Path):
    a, b = load_file(one / LAST), load_file(other / LAST)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_run_leaves_everything_behind(whole):
    names = {path.name for path in whole.iterdir()}
    assert names >= {
        "config.json",
        "environment.json",
        "init.json",
        "metrics.jsonl",
        "checkpoints",
        "eval",
        "bad_images.tsv",
        "report.html",
        LAST,
        "model_best.safetensors",
    }
    evaluation = {path.name for path in (whole / "eval" / "12").iterdir()}
    assert evaluation >= {"metrics.json", "table.md", "rankings.csv"}
    table = (whole / "eval" / "12" / "table.md").read_text()
    assert "text -> image" in table and "mINP" in table


def test_the_log_names_every_loss_and_each_step_once(whole):
    steps = [row for row in lines(whole) if "total" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    wanted = {"a_sdm", "id", "mlm", "efa", "mlm_dropped"}
    wanted |= {"total", "grad_norm", "lr", "skipped"}
    assert all(wanted <= row.keys() for row in steps)
    assert all(row["mlm_dropped"] == 0 for row in steps)
    assert any("pairs_per_second" in row for row in steps)
    assert any(row.get("model_flops_per_second", 0) > 0 for row in steps)
    rates = [row["lr"] for row in steps]
    assert rates[0] < max(rates) > rates[-1]
    assert any("val/r1" in row for row in lines(whole))


def test_stopping_and_going_on_is_bit_identical(folder, whole):
    part = folder / "part"
    train(tiny_config(folder, train__stop_step=5), part)
    train(tiny_config(folder), part)
    assert_same_weights(whole, part)
    ours, theirs = lines(part), lines(whole)
    want = {r["step"]: r["total"] for r in theirs if "total" in r}
    assert {r["step"]: r["total"] for r in ours if "total" in r} == want


def assert_same_start(run: Path, whole: Path, steps: int):
    want = [row for row in lines(whole) if "total" in row][:steps]
    got = [row for row in lines(run) if "total" in row][:steps]
    assert len(want) == len(got) == steps
    for ours, theirs in zip(got, want, strict=True):
        for name in ("a_sdm", "id", "mlm", "efa", "total", "grad_norm", "mlm_dropped"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)


def test_captions_cut_to_their_batch_give_the_same_run(folder, monkeypatch):
    # The paper's rate: with the demo's, Adam's first steps amplify rounding.
    config = tiny_config(folder, train__stop_step=3, optimizer__lr=1e-5)
    train(config, folder / "uncut")
    lengths, cut = [], Captions.cut

    def watched(self, pairs):
        lengths.append(cut(self, pairs))
        return lengths[-1]

    monkeypatch.setattr(Captions, "cut", watched)
    with config.unlocked():
        config.data.caption_buckets = (52, 54)
    train(config, folder / "cut")
    assert len(set(lengths)) == 2, "two programs"
    assert max(lengths) < config.model.context_length, lengths
    assert_same_start(folder / "cut", folder / "uncut", steps=3)


def test_less_memory_gives_the_same_run_and_the_same_model_flops(folder, whole):
    """Chunks encode twice and remat recomputes: work, but no progress."""
    config = tiny_config(
        folder, train__stop_step=2, train__chunks=2, model__remat="full"
    )
    train(config, folder / "twice")
    # More steps are compared where rounding is not amplified by Adam: test_devices.
    assert_same_start(folder / "twice", whole, steps=1)

    def flops(run: Path) -> float:
        row = next(row for row in lines(run) if row["step"] == 2 and "total" in row)
        return row["model_flops_per_second"] / row["steps_per_second"]

    assert flops(folder / "twice") == pytest.approx(flops(whole), rel=1e-9)


@pytest.fixture(scope="module")
def killed(folder):
    """kill -9 after the checkpoint of step 5."""
    train_until_killed(folder, folder / "killed", after=5)
    assert not (folder / "killed" / LAST).exists()
    return folder / "killed"


def test_the_same_seed_gives_the_same_bits_in_another_process(whole, killed):
    """All that either logs but speeds, gradients' norms among it."""

    def numbers(run: Path) -> list[dict]:
        speeds = ("_per_second", "mfu")
        steps = [row for row in lines(run) if "total" in row and row["step"] <= 5]
        return [{k: v for k, v in r.items() if not k.endswith(speeds)} for r in steps]

    assert len(numbers(whole)) == 5 and numbers(killed) == numbers(whole)


def test_a_killed_run_goes_on_bit_identically(folder, whole, killed, tmp_path):
    """The same command resumes from the checkpoint."""
    run = Path(shutil.copytree(killed, tmp_path / "run"))
    train(tiny_config(folder), run)
    assert_same_weights(whole, run)


def test_a_full_disk_ends_a_run_in_one_line(folder, killed, tmp_path):
    """As real as a full one: no file may have more than so many bytes."""
    run = Path(shutil.copytree(killed, tmp_path / "run"))
    process = started(folder, run, limit="500")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1, errors[-2000:]
    lines = errors.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: the run has ended"), errors
    assert f"{run} cannot be written: File too large (disk " in lines[0]
    assert "The checkpoint of step 5 is sound; raise the limit" in lines[0]


def test_a_signal_ends_a_run_with_75_and_it_goes_on(folder, whole, killed, tmp_path):
    run = Path(shutil.copytree(killed, tmp_path / "run"))
    process = started(folder, run)
    while process.poll() is None:
        if "6/12" in process.stdout.readline():
            break
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 75, errors[-2000:]
    assert re.search(r"SIGTERM: saved step \d+; the same command resumes", said)
    assert not (run / LAST).exists()
    train(tiny_config(folder), run)
    assert_same_weights(whole, run)


def test_a_checkpoint_of_another_configuration_is_refused(folder, whole):
    other = tiny_config(folder, optimizer__lr=1.0)
    with pytest.raises(CheckpointMismatchError, match=r"optimizer\.lr"):
        train(other, whole)


def test_evaluating_a_run_repeats_its_numbers(folder, whole, capsys):
    said = json.loads((whole / "eval" / "12" / "metrics.json").read_text())
    evaluate(tiny_config(folder), whole)
    assert json.loads((whole / "eval" / "12" / "metrics.json").read_text()) == said
    assert "last weights (step 12) on test" in capsys.readouterr().out


def test_evaluating_a_weight_file_alone(folder, whole, capsys):
    config = tiny_config(folder, init__path=str(whole / LAST))
    evaluate(config, folder / "zero_shot")
    assert "text -> image" in capsys.readouterr().out
    name = "metrics.json"
    origin = json.loads((folder / "zero_shot" / "init.json").read_text())
    assert origin["sha256"] == hashlib.sha256((whole / LAST).read_bytes()).hexdigest()
    got = json.loads((folder / "zero_shot" / "eval" / "0" / name).read_text())
    want = json.loads((whole / "eval" / "12" / name).read_text())
    assert got["t2i"] == want["t2i"]


def test_nothing_to_evaluate_says_what_to_name(folder):
    with pytest.raises(FileNotFoundError, match=r"--config\.init\.path"):
        evaluate(tiny_config(folder), folder / "empty")


def test_an_exploding_loss_ends_the_run_by_name(folder):
    config = tiny_config(folder, optimizer__lr=1e20, train__max_skipped=2)
    with pytest.raises(FloatingPointError, match="not finite after step"):
        train(config, folder / "exploded")


def test_a_batch_that_does_not_divide_names_the_nearest(folder):
    config = tiny_config(folder, train__batch_size=7)
    with pytest.raises(ValueError, match=r"7 does not divide over 2.*\[6, 8\]"):
        train(config, folder / "odd")


def test_what_an_evaluation_would_miss_is_named_before_the_training(
    folder, monkeypatch
):
    change_data(monkeypatch, test=lambda split: replace(split, pairs=()))
    with pytest.raises(ValueError, match="no captions in split 'test'"):
        train(tiny_config(folder, eval__split="test"), folder / "no_test")
    monkeypatch.undo()

    def damaged(split):
        first, second, *others = split.images
        bad = (replace(first, path="/gone.jpg"), replace(second, path=os.devnull))
        return replace(split, images=(*bad, *others))

    change_data(monkeypatch, test=damaged)
    with pytest.raises(UnreadablePicturesError) as caught:
        train(tiny_config(folder), folder / "no_test")
    assert "test  /gone.jpg: missing" in str(caught.value)
    assert f"test  {os.devnull}: unreadable" in str(caught.value)
    assert not (folder / "no_test").exists()


def test_without_splits_a_run_trains_and_says_what_it_cannot_measure(
    folder, monkeypatch, capsys
):
    change_data(
        monkeypatch,
        val=lambda split: None,
        test=lambda split: replace(split, images=(), pairs=()),
    )
    config, run = tiny_config(folder, train__stop_step=1), folder / "no_splits"
    train(config, run)
    assert "Nothing was measured: " in capsys.readouterr().out
    assert (run / LAST).exists() and not (run / BEST).exists()
    kinds = [each["kind"] for each in json.loads((run / "data.json").read_text())]
    assert "no-test" in kinds
    with pytest.raises(ValueError, match="captions neither in val nor in test"):
        evaluate(config, run)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"as eval\.split=none asks"):
        evaluate(tiny_config(folder, eval__split="none"), run)


class Killed(BaseException):
    """What a kill between the save and the evaluation leaves is what this leaves."""


@pytest.fixture(scope="module")
def unevaluated(folder, whole):
    """The same run, which has saved its last step and has not evaluated it."""
    keep = Judge.keep_best

    def killed(judge, params, *, step):
        if step == 12:
            raise Killed
        return keep(judge, params, step=step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judge, "keep_best", killed)
        with pytest.raises(Killed):
            train(tiny_config(folder), folder / "unevaluated")
    left = {path.name for path in (folder / "unevaluated").iterdir()}
    assert "checkpoints" in left and LAST not in left
    assert rows(folder / "unevaluated") == rows(whole)[:-1]
    return folder / "unevaluated"


@pytest.fixture
def run(unevaluated, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(unevaluated, tmp_path / "run"))


def rows(run):
    """The log without what depends on the machine."""
    return [{k: v for k, v in row.items() if k not in SPEEDS} for row in lines(run)]


def test_a_moved_run_makes_up_for_the_evaluation_that_it_missed(
    folder, whole, run, tmp_path
):
    """With its data and tokenizer elsewhere, it ends as if nothing had happened."""
    population = Path(shutil.copytree(folder / "population", tmp_path / "people"))
    tokenizer = Path(shutil.move(population / "tokenizer", tmp_path / "words"))
    moved = {"data__root": str(population), "data__tokenizer": str(tokenizer)}
    train(tiny_config(folder, **moved), run)
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
    train(tiny_config(folder), run)
    said = capsys.readouterr().out
    assert f"changed since {run}/checkpoints/12 was saved: val captions; train" in said
    assert f"{BEST} was chosen on another split, or another state of it: set" in said
    assert f"{LAST} cannot be read (" in said
    assert "metrics.jsonl: 1 lines cannot be read" in said
    for name in (BEST, LAST):
        assert (run / f"{name}.aside").is_file() and (run / name).is_file()
    assert (run / "metrics.jsonl.damaged").read_bytes() == damaged
    steps = [row["step"] for row in rows(run) if "total" in row]
    assert steps == list(range(1, 13)) and "val/r1" in rows(run)[-1]
    assert weights.read_archive(run / BEST).metadata["chosen_on"] == "val"


def test_other_captions_to_learn_from_are_refused_in_words(folder, run, monkeypatch):
    def mended(split):
        first, *others = split.pairs
        return replace(split, pairs=(replace(first, caption="mended"), *others))

    change_data(monkeypatch, train=mended)
    with pytest.raises(CheckpointMismatchError) as error:
        train(tiny_config(folder), run)
    assert str(error.value).splitlines()[1:-1] == [
        "  train captions: not those of the checkpoint"
    ]


@pytest.fixture(scope="module")
def session(folder):
    return open_session(tiny_config(folder), str(folder / "never"))


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
            train(tiny_config(folder), whole)
        evaluate(tiny_config(folder), whole)
    assert rows(whole) == before
