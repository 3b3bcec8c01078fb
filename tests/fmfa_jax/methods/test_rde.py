# SPDX-License-Identifier: Apache-2.0
"""RDE's state and choices: which pairs weigh what, and what learns how fast."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmfa_jax import models
from fmfa_jax.machines.mesh import make_mesh, to_devices
from fmfa_jax.methods.method import Epoch
from fmfa_jax.methods.rde import RDEMethod, RDEOptions, Recipe, consensus
from fmfa_jax.methods.rde.method import WEIGHTS
from tests.tiny_model import tiny_model

pytestmark = pytest.mark.usefixtures("quick_compiles")

PAIRS, BATCH = 18, 8  # two batches, and two pairs that fill none
TERMS = {"bge": 1.0, "tse": 1.0}


def method(devices=1, losses=TERMS, **options):
    recipe = Recipe(losses=losses, rde=RDEOptions(width=64, **options))
    model = RDEMethod.sized(recipe, tiny_model())
    mesh = make_mesh(devices=jax.devices()[:devices])
    return RDEMethod(model, recipe, mesh, pairs=PAIRS, seed=3)


def batches(mesh):
    rng = np.random.default_rng(0)
    tokens = np.zeros((PAIRS, 12), np.int32)
    for row in tokens:
        words = rng.integers(3, 10)
        row[: words + 2] = [78, *rng.integers(1, 77, words), 79]
    rows = {
        "image": rng.integers(0, 256, (PAIRS, 32, 16, 3), dtype=np.uint8),
        "tokens": tokens,
        "person": np.arange(PAIRS, dtype=np.int32) // 2,
        "pair": np.arange(PAIRS, dtype=np.int32)[::-1].copy(),
    }
    for start in range(0, PAIRS - BATCH, BATCH):
        part = slice(start, start + BATCH)
        yield to_devices({name: x[part] for name, x in rows.items()}, mesh)


def epoch(number, mesh):
    return Epoch(number, functools.partial(batches, mesh))


@pytest.fixture(scope="module")
def params():
    return models.init_params(method().model, 0)


def divided(rde, params, number=0, monkeypatch=None):
    """The weights of pairs before an epoch, and the losses that they come from."""
    found, weigh = [], consensus.weights

    def told(losses, **options):
        found.append(losses)
        return weigh(losses, **options)

    monkeypatch.setattr(consensus, "weights", told)
    state = {"params": params, "step": jnp.int32(2 * number)} | rde.initial_state()
    after = rde.before_epoch(state, epoch(number, rde.mesh))
    monkeypatch.setattr(consensus, "weights", weigh)
    return np.asarray(after[WEIGHTS]), found[0]


@pytest.mark.parametrize("devices", [2, 4])
def test_the_pass_is_the_same_on_any_number_of_devices(devices, params, monkeypatch):
    weights, one = divided(method(), params, 1, monkeypatch)
    others, many = divided(method(devices), params, 1, monkeypatch)
    np.testing.assert_allclose(many.bge, one.bge, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(many.tse, one.tse, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(others, weights)


def test_pairs_that_fill_no_batch_are_left_alone(params, monkeypatch):
    weights, found = divided(method(), params, 0, monkeypatch)
    assert found.met.tolist() == [False] * 2 + [True] * 16
    assert weights[:2].tolist() == [1.0, 1.0] and set(weights[2:]) == {0.0, 1.0}


def test_the_pass_sees_what_the_steps_will_see(params):
    """The oracle is the step's own key, row by row, and statistics of earlier steps."""
    rde = method(batch_norm="batch")
    batch = next(batches(rde.mesh))
    key = jax.random.fold_in(jax.random.key(rde.seed), 5)
    rows = dict(batch) | {"row": jnp.arange(BATCH)}
    features, notes = jax.jit(rde.encode)(params, rows, key)
    want, _ = rde.pair_losses(features, notes, batch, params, statistics="kept")
    got = rde._measure(params, batch, np.int32(5))
    for name in TERMS:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)
    other = rde._measure(params, batch, np.int32(6))
    assert not np.allclose(got["bge"], other["bge"])


def test_without_a_division_all_pairs_count():
    rde = method(division="none")
    state = rde.initial_state()
    assert rde.before_epoch(state, Epoch(0, batches=None)) is state
    assert np.asarray(state[WEIGHTS]).tolist() == [1.0] * PAIRS


def test_global_features_alone_have_no_head(params, monkeypatch):
    rde = method(losses={"bge": 1.0, "tse": 0.0})
    assert rde.model == models.towers_only(rde.model)
    towers = models.params_of(rde.model, params)
    _, found = divided(rde, towers, 0, monkeypatch)
    np.testing.assert_array_equal(found.bge, found.tse)
    assert models.feature_parts(rde.model) == {}


def test_how_well_pairs_were_chosen():
    kept = np.array([True, True, False, False, True])
    pair = np.array([4, 0, 1, 2, 3])
    assert consensus.quality(kept, pair, None) == {"kept_share": 0.6}
    wrong = np.array([False, True, False, False, True])
    figures = consensus.quality(kept, pair, wrong)
    assert figures["kept_precision"] == pytest.approx(2 / 3)  # pairs 0 and 3 of 3
    assert figures["kept_recall"] == pytest.approx(2 / 3)  # of 0, 2 and 3
    none = consensus.quality(~np.ones(1, bool), pair[1:2], ~np.ones(5, bool))
    assert none == {"kept_share": 0.0, "kept_recall": 0.0}


def test_what_learns_how_fast():
    group = method(lr=1e-3).parameter_group
    assert group("image_tower/blocks/ln_1/bias") is None
    assert group("tse/image/up/kernel") == (pytest.approx(100), True)
    assert group("tse/text/norm/scale") == (pytest.approx(100), True)
    assert group("tse/text/norm/bias") == (pytest.approx(100), False)
    assert group("tse/image/norm/variance") == (0.0, False)
