# SPDX-License-Identifier: Apache-2.0
"""Runs with pairs whose gradient is not finite: they go on, or end by name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from data_pipeline.order import batch_ids
from fmfa_jax import weights
from fmfa_jax.methods import METHODS, Measured, Method
from fmfa_jax.training.failure import PAIRS, advice
from fmfa_jax.training.session import open_session, save_model
from tests.tiny_run import tiny_config, train

PAIRS_OF_ALL, BATCH, LAST = 64, 8, "model_last.safetensors"
STEP = 7  # the step of the first epoch that meets the bad pair
BAD = int(batch_ids(STEP - 1, seed=0, size=PAIRS_OF_ALL, batch_size=BATCH)[3])


@dataclass(frozen=True, kw_only=True)
class Nothing:
    losses: Mapping[str, float]


@dataclass(frozen=True)
class Distance(Method):
    """Root of the squared distance to a picture's shade, without any tower."""

    Recipe: ClassVar[type] = Nothing
    batch_keys: ClassVar[tuple[str, ...]] = ("image", "pair")

    @classmethod
    def for_task(cls, recipe, task):
        return cls(task.model)

    def encode(self, params, batch, key):
        shade = batch["image"].astype(jnp.float32).mean((1, 2, 3)) / 255
        square = (params["image_tower"]["projection"].mean() - shade) ** 2
        # The distance of the bad pair is 0, and its gradient 0 / 0.
        return jnp.sqrt(jnp.where(batch["pair"] == BAD, 0.0 * square, square)), {}

    def compare(self, features, notes, batch, state):
        total = features.mean()
        return total, Measured({"far": total, "never": jnp.nan * total})

    @staticmethod
    def image_features(model, params, images):
        return jnp.ones((len(images), model.embed_dim))

    text_features = image_features


@pytest.fixture(scope="module", autouse=True)
def known():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "distance", Distance)
        yield


def distance(folder, **changes):
    config = tiny_config(folder, "weak", optimizer__lr=0.1, **changes)
    with config.unlocked():
        config.method, config.losses = "distance", {}
    return config


@pytest.fixture(scope="module")
def whole(folder):
    """Sixteen steps, of which each epoch's meeting with the bad pair is skipped."""
    train(distance(folder, train__stop_step=16), folder / "whole")
    return folder / "whole"


@pytest.fixture(scope="module")
def impatient(folder):
    return folder / "impatient"


def lines(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    kept = ("step", "total", "grad_norm", "lr", "skipped")
    return [{key: row[key] for key in kept} for row in rows if "total" in row]


def assert_same_weights(one, other):
    a, b = load_file(one / LAST), load_file(other / LAST)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_run_skips_what_it_cannot_learn_from(whole):
    rows = lines(whole)
    skipped = [row["step"] for row in rows if row["grad_norm"] is None]
    assert len(skipped) == 2 and skipped[0] == STEP and skipped[1] > BATCH
    assert [row["skipped"] for row in rows] == [
        sum(step <= row["step"] for step in skipped) for row in rows
    ]
    assert all(row["total"] is not None for row in rows)


def test_without_patience_the_first_ends_the_run_and_is_told_of(folder, impatient):
    """It is found three steps later, before the save."""
    run = impatient
    config = distance(folder, train__max_skipped=0, log__every_steps=16)
    with pytest.raises(FloatingPointError) as error:
        train(config, run)
    text = str(error.value)
    pairs = batch_ids(STEP - 1, seed=0, size=PAIRS_OF_ALL, batch_size=BATCH).tolist()
    assert f"not finite after step {STEP - 1}: 4 steps" in text
    assert "terms that are not finite: never\n" in text
    assert "gradients that are not finite: image_tower/projection\n" in text
    assert f"pairs: {', '.join(map(str, pairs[:5]))}, ... (8 in all)" in text
    table = [row.split("\t") for row in (run / PAIRS).read_text().splitlines()[1:]]
    assert [int(row[0]) for row in table] == pairs
    assert table[0][1] in text and table[0][2] in text
    saved, best = run / "checkpoints" / "5", run / "model_best.safetensors"
    assert saved.is_dir() and f"resumes from {saved};" in text
    assert best.is_file() and f"--config.init.path={best}" in text
    assert not (run / "checkpoints" / "10").exists() and not (run / LAST).exists()


def test_with_patience_it_goes_on_bit_for_bit(folder, impatient, whole):
    """From step 5, and once more between the first skipped step and the second."""
    for stop in (9, 16):
        train(distance(folder, train__stop_step=stop), impatient)
    assert_same_weights(impatient, whole)
    assert lines(impatient)[-11:] == lines(whole)[-11:]


def test_where_nothing_is_saved_no_file_is_named(tmp_path):
    text = " ".join(advice(tmp_path, None))
    assert "starts again: nothing is saved yet" in text
    assert "init.path" not in text


def test_weights_that_are_not_finite_are_refused(folder, whole):
    loaded = weights.load_params(whole / LAST)
    params = loaded.params
    params["text_tower"]["projection"][0, 1] = np.inf
    poisoned = folder / "poisoned.safetensors"
    weights.save_native(poisoned, params, loaded.config)
    with pytest.raises(weights.WeightsError, match=r"NaN or infinity in text_tower"):
        weights.load_model(poisoned)
    config = distance(folder, init__path=str(poisoned))
    with pytest.raises(weights.WeightsError, match=r"poisoned.*text_tower/projection"):
        train(config, folder / "never")
    session = open_session(distance(folder), str(folder / "never"))
    with pytest.raises(FloatingPointError, match=r"x\.safetensors.*text_tower/proj"):
        save_model(session, "x.safetensors", params, {})
    assert not list((folder / "never").glob("*.safetensors"))
