# SPDX-License-Identifier: Apache-2.0
"""Whole runs of the weak method: exact resume with its memory, and no use of ids."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from data_pipeline.records import Split
from fmfa_jax.run.belonging import CheckpointMismatchError
from tests.tiny_run import (
    change_data,
    tiny_config,
    train,
    train_until_killed,
    without_ids,
)

LAST = "model_last.safetensors"


@pytest.fixture(scope="module")
def whole(folder):
    """Twelve steps in one go; the second epoch mines."""
    train(tiny_config(folder, "weak"), folder / "whole")
    return folder / "whole"


def rows(run):
    return [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_weights(one, other):
    a, b = load_file(one / LAST), load_file(other / LAST)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_the_log_names_every_term_and_the_quality_of_the_links(whole):
    steps = [row for row in rows(whole) if "total" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    for row in steps:
        assert {"itc", "local", "global", "consistency", "linked_share"} <= row.keys()
        # The first epoch (8 steps) only writes the memory.
        assert (row["global"] == 0) == (row["step"] <= 8)
        assert (row["links_per_anchor"] == 0) == (row["step"] <= 8)
    assert any(0 <= row.get("mined_precision", -1) <= 1 for row in steps[8:])


def test_the_quality_of_links_is_that_of_all_steps_since_the_last_line(whole, folder):
    """The oracle adds the lines of a run that logs every step."""
    run = folder / "rare"
    train(tiny_config(folder, "weak", log__every_steps=12), run)
    (row,) = [row for row in rows(run) if row["step"] == 12 and "total" in row]
    lines = [row for row in rows(whole) if "total" in row]
    # Recall has one denominator in every step, 3 links of each of the 8 anchors; with
    # a checkpoint after step 10 the last line spans two steps.
    want = np.mean([line["mined_recall"] for line in lines[10:12]])
    np.testing.assert_allclose(row["mined_recall"], want, rtol=1e-6)
    assert want > 0


def test_stopping_in_the_second_epoch_is_bit_identical(folder, whole):
    part = folder / "part"
    train(tiny_config(folder, "weak", train__stop_step=10), part)
    train(tiny_config(folder, "weak"), part)
    assert_same_weights(whole, part)
    want = {r["step"]: r["total"] for r in rows(whole) if "total" in r}
    assert {r["step"]: r["total"] for r in rows(part) if "total" in r} == want


def test_a_killed_run_goes_on_bit_identically_with_its_memory(folder, whole):
    """kill -9 in the second epoch, when the memory is read at every step."""
    killed = folder / "killed"
    train_until_killed(folder, killed, after=10, preset="weak")
    train(tiny_config(folder, "weak"), killed)
    assert_same_weights(whole, killed)


def test_the_memory_is_not_in_the_weights(whole):
    assert not [name for name in load_file(whole / LAST) if "memory" in name]


def shuffled(split: Split) -> Split:
    order = np.random.default_rng(0).permutation(len(split.images))
    images = tuple(
        replace(picture, person=split.images[k].person)
        for picture, k in zip(split.images, order, strict=True)
    )
    return replace(split, images=images)


@pytest.mark.parametrize("change", [without_ids, shuffled])
def test_absent_or_shuffled_ids_leave_the_parameters_bit_identical(
    folder, whole, change, monkeypatch
):
    change_data(monkeypatch, train=change)
    run = folder / change.__name__
    train(tiny_config(folder, "weak"), run)
    assert_same_weights(whole, run)


def test_random_towers_are_warned_of(folder, whole, capsys):
    train(tiny_config(folder, "weak", train__stop_step=1), folder / "collinear")
    assert "above" in capsys.readouterr().out


def test_fmfa_refuses_people_without_ids(folder, monkeypatch):
    change_data(monkeypatch, train=without_ids)
    with pytest.raises(ValueError, match=r"have none; give them ids.*:weak"):
        train(tiny_config(folder), folder / "no_ids")


def test_another_number_of_pairs_than_the_memory_holds_is_refused(
    folder, whole, monkeypatch
):
    change_data(monkeypatch, train=lambda split: replace(split, pairs=split.pairs[:-1]))
    with pytest.raises(CheckpointMismatchError, match=r"data\.pairs.* 64, this run 63"):
        train(tiny_config(folder, "weak"), whole)


def test_the_identity_sampler_is_refused(folder):
    config = tiny_config(folder, "weak", data__sampler="identity")
    with pytest.raises(ValueError, match=r"wanted data\.sampler=shuffle"):
        train(config, folder / "sampler")
