# SPDX-License-Identifier: Apache-2.0
"""RDE's state and choices: which pairs weigh what, and what learns how fast."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmfa_jax import models
from fmfa_jax.losses import identity_loss
from fmfa_jax.machines.mesh import make_mesh, to_devices
from fmfa_jax.methods.method import Epoch
from fmfa_jax.methods.rde import RDEMethod, RDEOptions, Recipe, consensus
from fmfa_jax.methods.rde.method import WEIGHTS
from tests.tiny_model import tiny_model

PAIRS, BATCH = 18, 8  # two batches, and two pairs that fill none


@functools.cache
def method(devices=1, tse=1.0, people=0.0, **options):
    losses = {"bge": 1.0, "tse": tse, "id": people}
    recipe = Recipe(losses=losses, rde=RDEOptions(width=64, **options))
    model = RDEMethod.sized(recipe, tiny_model(classes=PAIRS))
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


def test_the_pass_is_the_same_on_any_number_of_devices(params, monkeypatch):
    weights, one = divided(method(), params, 1, monkeypatch)
    others, many = divided(method(devices=4), params, 1, monkeypatch)
    np.testing.assert_allclose(many.bge, one.bge, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(many.tse, one.tse, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(others, weights)


def test_pairs_that_fill_no_batch_are_left_alone(params, monkeypatch):
    weights, found = divided(method(), params, 0, monkeypatch)
    assert found.met.tolist() == [False] * 2 + [True] * 16
    assert weights[:2].tolist() == [1.0, 1.0] and set(weights[2:]) == {0.0, 1.0}


def test_the_pass_sees_what_the_steps_will_see(params):
    """The oracle: the step's own key and rows, and statistics of earlier steps."""
    rde = method()
    batch = next(batches(rde.mesh))

    @jax.jit
    def losses(params, batch, step):
        key = jax.random.fold_in(jax.random.key(3), step)
        features, notes = rde.encode(params, batch | {"row": jnp.arange(BATCH)}, key)
        return rde.pair_losses(features, notes, batch, params, statistics="kept")[0]

    want, other = (losses(params, batch, np.int32(step)) for step in (5, 6))
    got = rde._measure(params, batch, np.int32(5))
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)
        assert not np.allclose(got[name], other[name])


def test_without_a_division_all_pairs_count():
    rde = method(division="none")
    state = rde.initial_state()
    assert rde.before_epoch(state, epoch(0, rde.mesh)) is state
    assert np.asarray(state[WEIGHTS]).tolist() == [1.0] * PAIRS


def test_global_features_alone_have_no_head_and_decide_alone():
    rde = method(tse=0.0)
    assert rde.model == models.towers_only(rde.model)
    assert models.feature_parts(rde.model) == {}
    batch = {"pair": jnp.array([2, 0]), "bge": jnp.array([0.5, 1.5])}
    found = consensus.collect(iter([batch]), pairs=3)
    assert found.bge.tolist() == found.tse.tolist() == [1.5, 0.0, 0.5]
    assert found.met.tolist() == [True, False, True]


def test_people_are_told_apart_on_the_pairs_that_are_kept():
    rde, rng = method(tse=0.0, people=0.5), np.random.default_rng(0)
    pair, person = jnp.arange(4)[::-1], jnp.array([0, 1, 1, 2])
    names = {"image": 8, "text": 8, "image_logits": PAIRS, "text_logits": PAIRS}
    x = {name: jnp.asarray(rng.normal(size=(4, n))) for name, n in names.items()}
    weights = jnp.zeros(PAIRS).at[jnp.array([0, 3])].set(1.0)
    batch = {"pair": pair, "person": person}
    total, found = rde.compare(x, {}, batch, {WEIGHTS: weights, "params": {}})
    kept = jnp.array([0, 3])
    logits = (x[name][kept] for name in ("image_logits", "text_logits"))
    want = identity_loss(*logits, person[kept])
    np.testing.assert_allclose(found.scalars["id"], want, rtol=1e-6)
    np.testing.assert_allclose(total, found.scalars["bge"] + want / 2, rtol=1e-6)


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
