# SPDX-License-Identifier: Apache-2.0
"""A method is one place: this one, which only this file knows, trains and is measured.

Nothing of step, loop, optimiser, log, checkpoints or evaluation is told of it beyond
its name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from safetensors.numpy import load_file

from fmfa_jax import losses, models
from fmfa_jax.machines.mesh import replicated
from fmfa_jax.methods import METHODS, Measured, Method
from fmfa_jax.methods.method import check_weights, weighted
from tests.tiny_run import tiny_config, train

CALLS: list[tuple] = []
"""What was asked of the method: ("epoch", number, pairs) and ("step", pairs)."""


@dataclass(frozen=True, kw_only=True)
class OnlyWeights:
    losses: Mapping[str, float]

    def __post_init__(self):
        check_weights(self.losses, ("itc",))


@dataclass(frozen=True)
class Counting(Method):
    """ITC; counts its steps, and before each epoch adds up the pairs to come."""

    recipe: OnlyWeights
    mesh: Mesh

    Recipe: ClassVar[type] = OnlyWeights
    batch_keys: ClassVar[tuple[str, ...]] = ("image", "tokens", "pair")

    @classmethod
    def for_task(cls, recipe, task):
        return cls(task.model, recipe, task.mesh)

    def encode(self, params, batch, key):
        model = models.bind(self.model, params)
        pixels = models.normalize_images(batch["image"])
        image = models.global_image(model.encode_images(pixels))
        text = models.global_text(model.encode_texts(batch["tokens"]), batch["tokens"])
        return {"image": image, "text": text}, {}

    def compare(self, features, notes, batch, state):
        terms = {"itc": lambda: losses.itc(features["image"], features["text"])}
        total, scalars = weighted(terms, self.recipe.losses)
        scalars["to_come"] = state["count"]["to_come"].astype(jnp.float32)
        return total, Measured(scalars, records=batch["pair"])

    def advance(self, state, update, taken):
        count = state["count"]
        return {"count": count | {"steps": count["steps"] + taken}}

    def initial_state(self):
        count = {"steps": np.int32(0), "to_come": np.int32(0)}
        return {"count": jax.device_put(count, replicated(self.mesh))}

    def before_epoch(self, state, epoch):
        pairs = [np.asarray(batch["pair"]) for batch in epoch.batches()]
        CALLS.append(("epoch", epoch.number, np.concatenate(pairs)))
        to_come = np.int32(CALLS[-1][2].sum())
        to_come = jax.device_put(to_come, replicated(self.mesh))
        return state | {"count": state["count"] | {"to_come": to_come}}

    def parameter_group(self, path):
        return (0.0, False) if path.startswith("text_tower") else None

    def check_batch(self, batch):
        CALLS.append(("checked", batch["pair"]))

    def summarize(self, records):
        CALLS.append(("step", np.concatenate(records)))
        return {"pairs": float(sum(len(pairs) for pairs in records))}

    def warning(self, scalars: Mapping[str, float]):
        return f"begins with {scalars['pairs']:.0f} pairs"

    @staticmethod
    def image_features(model, params: Any, images):
        return jnp.ones(
            (len(images), model.embed_dim)
        )  # nobody can be told from anybody


@pytest.fixture(scope="module")
def whole(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "counting", Counting)
        CALLS.clear()
        train(counting(folder), folder / "whole")
        yield folder / "whole", list(CALLS)


def counting(folder, **changes):
    config = tiny_config(folder, "weak", **changes)
    with config.unlocked():
        config.method = "counting"
        config.losses = {"itc": 1.0}
    return config


def rows(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "total" in row]


def test_its_loss_state_records_and_warning_reach_the_log(whole, capsys):
    run, _ = whole
    assert all({"itc", "to_come", "pairs"} <= row.keys() for row in rows(run))
    assert [row["pairs"] for row in rows(run)] == [8.0] * 12


def test_before_each_epoch_it_meets_the_batches_that_the_steps_will_meet(whole):
    run, calls = whole
    epochs = [call for call in calls if call[0] == "epoch"]
    assert [call[1] for call in epochs] == [0, 1]
    kinds = [call[0] for call in calls if call[0] != "checked"]
    assert kinds == ["epoch", *["step"] * 8, "epoch", *["step"] * 4]
    met = [call[1] for call in calls if call[0] == "step"]
    steps = np.concatenate(met[:8]), np.concatenate(met[8:])
    # Each step's batch, and those of its own passes.
    assert sum(call[0] == "checked" for call in calls) == 8 + 4 + 2 * 8
    np.testing.assert_array_equal(steps[0], epochs[0][2])
    np.testing.assert_array_equal(steps[1], epochs[1][2][: len(steps[1])])
    sums = [float(call[2].sum()) for call in epochs]
    assert [row["to_come"] for row in rows(run)] == [sums[0]] * 8 + [sums[1]] * 4


def test_its_parameter_group_holds(whole, folder):
    run, _ = whole
    first = models.init_params(Counting.at_test(_model(run)), 0)
    last = load_file(run / "model_last.safetensors")
    name = "text_tower/projection"
    np.testing.assert_array_equal(last[name], first["text_tower"]["projection"])
    name = "image_tower/projection"
    assert np.abs(last[name] - first["image_tower"]["projection"]).max() > 0


def _model(run):
    from fmfa_jax import weights

    return weights.load_params(run / "model_last.safetensors").config


def test_its_features_are_measured(whole):
    run, _ = whole
    found = json.loads((run / "eval" / "12" / "metrics.json").read_text())
    assert found["t2i"]["r1"] == 0  # a tie counts as a miss


def test_its_state_resumes_in_the_middle_of_an_epoch(whole, folder):
    run, _ = whole
    part = folder / "part"
    train(counting(folder, train__stop_step=10), part)
    train(counting(folder), part)
    for name, wanted in load_file(run / "model_last.safetensors").items():
        got = load_file(part / "model_last.safetensors")[name]
        np.testing.assert_array_equal(got, wanted, err_msg=name)
    assert [row["to_come"] for row in rows(part)] == [
        row["to_come"] for row in rows(run)
    ]
