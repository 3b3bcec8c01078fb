# SPDX-License-Identifier: Apache-2.0
"""Whole runs of RDE: divided before each epoch, resumed exactly, fused at test."""

import json
from dataclasses import replace

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from data_pipeline import loader
from fmfa_jax import weights
from fmfa_jax.methods.rde import consensus
from fmfa_jax.search.encoder import open_model
from tests.tiny_run import evaluate, tiny_config, train

LAST = "model_last.safetensors"
WIDTH, JOINT = 64, 128


def configured(folder, **changes):
    """Batch norm with the batch's statistics: the harder one to resume."""
    return tiny_config(folder, "rde-batch", rde__width=WIDTH, **changes)


@pytest.fixture(scope="module")
def whole(folder):
    """Twelve steps in one go; what each division saw and decided."""
    divided, opened = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consensus, "weights", told(consensus.weights, divided))
        patch.setattr(loader, "open_cache", told(loader.open_cache, opened))
        train(configured(folder, data__cache="memory"), folder / "whole")
    assert len(opened) == 1, "steps and passes share what is decoded"
    return folder / "whole", divided


def told(function, calls):
    def call(found, *rest, **options):
        calls.append((found, function(found, *rest, **options)))
        return calls[-1][1]

    return call


def rows(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "total" in row]


def assert_same_runs(one, other):
    a, b = load_file(one / LAST), load_file(other / LAST)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    totals = ({row["step"]: row["total"] for row in rows(run)} for run in (one, other))
    assert next(totals) == next(totals)


def test_each_epoch_is_divided_and_the_log_says_how(whole):
    run, divided = whole
    assert len(divided) == 2
    for found, weight in divided:
        assert found.met.all() and (found.bge > 0).any()
        assert not np.array_equal(found.bge, found.tse)
        assert 0 < weight.mean() < 1
    shares = [row["kept_share"] for row in rows(run)]
    np.testing.assert_allclose(np.mean(shares[:8]), divided[0][1].mean())
    assert {"bge", "tse"} <= rows(run)[0].keys()


def test_dying_in_a_pass_and_stopping_after_it_is_bit_identical(
    folder, whole, monkeypatch
):
    """The checkpoint lies right before the pass: it is the first thing to be redone."""
    part, collected, passes = folder / "part", consensus.collect, []
    rare = {"checkpoint__every_steps": 8, "eval__split": "none"}

    def dies(measured, *, pairs):
        passes.append([])
        if len(passes) == 2:
            passes[1] += [next(measured) for _ in range(3)]
            raise KeyboardInterrupt
        return collected(measured, pairs=pairs)

    monkeypatch.setattr(consensus, "collect", dies)
    with pytest.raises(KeyboardInterrupt):
        train(configured(folder, **rare), part)
    monkeypatch.undo()
    train(configured(folder, train__stop_step=10, **rare), part)
    train(configured(folder, **rare), part)
    assert_same_runs(whole[0], part)


def test_running_statistics_are_in_the_weights(whole):
    saved = load_file(whole[0] / LAST)
    for side in ("image", "text"):
        assert np.abs(saved[f"tse/{side}/norm/mean"]).max() > 0.01
        assert np.abs(saved[f"tse/{side}/norm/variance"] - 1).max() > 0.01


def test_both_embeddings_are_reported_apart(whole):
    run, _ = whole
    found = json.loads((run / "eval" / "12" / "metrics.json").read_text())
    assert set(found["t2i_parts"]) == {"BGE", "TSE"}
    table = (run / "eval" / "12" / "table.md").read_text()
    assert "text -> image, BGE alone" in table and "TSE alone" in table


def test_its_weights_alone_give_the_fused_feature(whole):
    model = weights.load_model(whole[0] / LAST)
    images = np.zeros((2, *model.config.image_size, 3), np.uint8)
    assert model.encode_image(images).shape == (2, JOINT + WIDTH)
    opened = open_model(whole[0])
    sentences = opened.sentences(["a man", "a red bag"])
    np.testing.assert_allclose(np.linalg.norm(sentences, axis=1), 1, rtol=1e-5)
    bge = sentences[:, :JOINT]
    np.testing.assert_allclose(np.linalg.norm(bge, axis=1), 2**-0.5, rtol=1e-5)


def test_weights_of_another_method_are_measured_by_what_they_have(folder, whole):
    """An evaluation before any training, of towers without the head."""
    saved = load_file(whole[0] / LAST)
    towers = {name: value for name, value in saved.items() if name[:3] != "tse"}
    model = weights.load_model(whole[0] / LAST).config
    path, model = folder / "towers.safetensors", replace(model, tse_width=0)
    weights.save_native(path, unflatten_dict(towers, sep="/"), model)
    evaluate(configured(folder, init__path=str(path)), folder / "bare")
    found = json.loads((folder / "bare" / "eval" / "0" / "metrics.json").read_text())
    assert "t2i_parts" not in found
