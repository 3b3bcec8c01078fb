# SPDX-License-Identifier: Apache-2.0
"""The shares of word maps that lie on what words name, against pixels."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from benchmarks import word_maps
from data_pipeline.synthetic import recorded_options, write_population
from data_pipeline.tokenizer import open_tokenizer
from fmfa_jax import models, weights
from tests.benchmarks.conftest import table
from tests.tiny_model import tiny_model

CONFIG = tiny_model()  # 4 x 2 patches of 8 x 8 pixels


def test_the_share_is_that_of_pixels():
    """Weights spread evenly over the pixels of their patches."""
    rng = np.random.default_rng(0)
    mask = np.zeros(CONFIG.image_size, bool)
    mask[5:19, 3:12] = True
    weights = rng.random(8)
    on, total = 0.0, 0.0
    for row, column in np.ndindex(mask.shape):
        weight = weights[2 * (row // 8) + column // 8] / 64
        on += weight * mask[row, column]
        total += weight
    covered = word_maps.coverage(mask, CONFIG)
    share, area, best, _ = word_maps.score(weights, covered)
    np.testing.assert_allclose([share, area], [on / total, mask.mean()], rtol=1e-6)
    assert best == covered.max() == 5 * 8 / 64


def test_a_mask_of_a_larger_picture_is_averaged():
    mask = np.zeros((96, 48), bool)
    mask[:24, :12] = True
    np.testing.assert_allclose(word_maps.coverage(mask, CONFIG), [0.5] + [0] * 7)


def test_a_peak_is_on_the_thing_or_beside_it():
    covered = np.array([1, 0.5, 0.25, 0])
    peaks = [word_maps.score(np.eye(4)[at], covered)[3] for at in range(4)]
    assert peaks == [True, True, False, False]
    share, area, *_ = word_maps.score(np.zeros(4), covered)
    assert share == area == 0.4375


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained model of three drawn people."""
    folder = tmp_path_factory.mktemp("words")
    people = {"identities": 1, "test_identities": 2, "images_per_identity": 1}
    root = write_population(folder / "people", image_size=(64, 32), **people)
    tokens = str(root / "tokenizer")
    vocabulary = open_tokenizer(tokens).vocab_size
    config = tiny_model(
        vocab_size=vocabulary, context_length=56, image_layers=2, irr_layers=1
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: 0.1 * rng.standard_normal(x.shape, np.float32),
        models.param_shapes(config),
    )
    run = folder / "run"
    weights.save_native(run / "model_best.safetensors", params, config)
    # As the presets leave it that train no interaction encoder.
    towers = {name: part for name, part in params.items() if name != "irr"}
    without = replace(config, irr_layers=0)
    weights.save_native(run / "model_last.safetensors", towers, without)
    about = {"data.name": "synthetic", "data.root": str(root), "loss.efa_rule": "plus"}
    about |= {"data.tokenizer": tokens, "eval.batch_size": 4}
    drawn = recorded_options(root)
    about |= {f"data.options.{key}": value for key, value in drawn.items()}
    (run / "config.json").write_text(json.dumps(about))
    return run


MEASURED = ("similarity", "attention", "occlusion", "gradient x tokens", "contribution")


def test_maps_are_measured_on_the_same_words(bench, run, compiled_once):
    asked = ("--captions", "2", "--only", *MEASURED)
    title, rows = table(bench("benchmarks.word_maps", str(run), *asked))
    assert title == "Word maps, 2 captions" and tuple(rows) == MEASURED
    for name in ("area", "best", "words"):
        assert len({row[name] for row in rows.values()}) == 1
    for row in rows.values():
        assert 0 <= float(row["on it"]) <= float(row["best"]) < 1


def test_a_model_without_an_interaction_encoder_has_no_attention(bench, run, tmp_path):
    shutil.copy(run / "config.json", tmp_path)
    shutil.copy(run / "model_last.safetensors", tmp_path / "model_best.safetensors")
    asked = ("--captions", "1", "--only", "similarity", "attention")
    said = bench("benchmarks.word_maps", str(tmp_path), *asked)
    assert tuple(table(said)[1]) == ("similarity",)
    assert "no attention: it has no interaction encoder" in said
