# SPDX-License-Identifier: Apache-2.0
"""The losses that RDE weighs pair by pair, against its code's numbers (rde.npz)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmfa_jax.losses import itc, pair_itc, pair_sdm, sdm, tal, trl
from tests.reference_case import group, reference_arrays

LOSSES = {
    "TAL": tal,
    "TRL": trl,
    "InfoNCE": lambda image, text, person: pair_itc(image, text),
    "SDM": pair_sdm,
}
# RDE divides these two by the sum of the weights.
AVERAGED = ("InfoNCE", "SDM")
FEATURES = {
    "bge": ("out/image_global", "out/text_global"),
    "tse": ("train/image_tse", "train/text_tse"),
}
HAND_TEXT, HAND_IMAGE = (0, 20, 60, 200), (10, 40, 100, 170)


def measure(loss, image, text, person, weight):
    """Losses of the pairs, and the gradients of their weighted sum."""

    def total(image, text):
        pairs = loss(image, text, person)
        return (weight * pairs).sum(), pairs

    grad = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (_, pairs), gradients = jax.jit(grad)(image, text)
    return np.asarray(pairs), gradients


def assert_near(got, wanted, tolerance):
    """By the norm of the whole array."""
    scale = np.linalg.norm(wanted)
    assert np.linalg.norm(np.asarray(got) - wanted) <= tolerance * scale


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("features", FEATURES)
def test_pairs_of_the_model_equal_the_official_code(name, features):
    arrays = reference_arrays("rde")
    image, text = (arrays[key].astype(np.float32) for key in FEATURES[features])
    weight = arrays["in/label_hat"].astype(np.float32)
    pairs, gradients = measure(LOSSES[name], image, text, arrays["in/pids"], weight)
    assert_near(pairs, arrays[f"per/{name}/{features}"], 1e-4)
    for got, side in zip(gradients, ("image", "text"), strict=True):
        wanted = arrays[f"per_grad/{name}/{features}/{side}"]
        assert_near(got, wanted, 1e-4)
    totals = group(arrays, f"rbs/{name}")
    for kind, share in (("ones", np.ones_like(weight)), ("some", weight)):
        divisor = share.sum() if name in AVERAGED else 1
        got = (share * pairs).sum() / divisor
        np.testing.assert_allclose(got, totals[f"{features}_{kind}"], rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_made_features_equal_the_official_code_in_float64(name):
    arrays = reference_arrays("rde")
    pairs = group(arrays, "pairs")
    with jax.enable_x64(True):
        inputs = [jnp.asarray(pairs[key]) for key in ("image", "text", "pids")]
        got, gradients = measure(LOSSES[name], *inputs, pairs["weight"])
    np.testing.assert_allclose(got, pairs[name], rtol=1e-7, atol=1e-12)
    for gradient, side in zip(gradients, ("image", "text"), strict=True):
        assert_near(gradient, pairs[f"grad/{name}/{side}"], 1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_without_negatives_and_directions_all_is_finite(name):
    """The official TAL has the same values for one person, and NaN as gradient."""
    pairs = group(reference_arrays("rde"), "pairs")
    image, text = (pairs[key].astype(np.float32) for key in ("image", "text"))
    one = np.zeros(len(image), np.int32)
    got, gradients = measure(LOSSES[name], image, text, one, jnp.ones(len(one)))
    np.testing.assert_allclose(got, pairs[f"one_person/{name}"], atol=1e-5)
    assert all(np.isfinite(g).all() for g in gradients)
    if name == "TAL":
        assert not any(np.any(g) for g in gradients)
    for people in (one, pairs["pids"]):
        got, gradients = measure(LOSSES[name], 0 * image, text, people, 1.0)
        assert np.isfinite(got).all()
        assert all(np.isfinite(g).all() for g in gradients)


def on_circle(degrees):
    angle = np.deg2rad(degrees)
    return jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1), jnp.float32)


@pytest.mark.parametrize(
    ("person", "tau", "wanted"),
    [
        ([0, 1, 2, 3], 0.015, [0.1, 0.24511527, 0.27364818, 0]),
        ([0, 0, 2, 3], 0.015, [0, 0.10000163, 0.27364818, 0]),
        ([0, 0, 2, 3], 0.05, [0, 0.10522531, 0.27377986, 0]),
    ],
)
def test_tal_of_four_angles_by_hand(person, tau, wanted):
    image, text = on_circle(HAND_IMAGE), on_circle(HAND_TEXT)
    got = tal(image, text, jnp.asarray(person), tau=tau, margin=0.1)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def slow_tal(image, text, person, tau, margin):
    """The formula in float64, one row at a time, its largest exponent taken out."""

    def log_sum(x):
        return x.max() + np.log(np.exp(x - x.max()).sum())

    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (text, image)]
    scores = unit[0] @ unit[1].T
    total = np.zeros(len(person))
    for rows in (scores, scores.T):
        for i, row in enumerate(rows / tau):
            mine = person == person[i]
            weight = np.exp(row[mine] - log_sum(row[mine]))
            gap = margin - tau * weight @ row[mine] + tau * log_sum(row[~mine])
            total[i] += max(gap, 0)
    return total


@pytest.mark.parametrize("tau", [0.005, 0.01, 0.015, 0.1])
def test_tal_holds_below_the_temperature_where_exp_overflows(tau):
    """Pairs are near copies, so cosines reach 1: exp(1 / .005) is 7e86."""
    rng = np.random.default_rng(3)
    image = rng.normal(size=(12, 6))
    text = image + 0.1 * rng.normal(size=(12, 6))
    image[5] = image[4]
    person = np.asarray([0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 8, 9])
    wide = [jnp.asarray(x, jnp.float32) for x in (image, text)]
    got, gradients = measure(
        lambda *x: tal(*x, tau=tau, margin=0.3), *wide, jnp.asarray(person), 1.0
    )
    wanted = slow_tal(image, text, person, tau, 0.3)
    assert np.count_nonzero(wanted) > 3
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(g).all() and np.any(g) for g in gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_pairs_move_with_the_batch_and_ignore_lengths(name):
    arrays = reference_arrays("rde")
    image, text = (arrays[key].astype(np.float32) for key in FEATURES["bge"])
    person, order = arrays["in/pids"], np.asarray([3, 1, 7, 5, 0, 4, 2, 6])
    loss = jax.jit(LOSSES[name])
    moved = loss(7 * image[order], text[order] / 3, person[order])
    np.testing.assert_allclose(moved, loss(image, text, person)[order], atol=1e-5)


def test_means_of_pairs_are_the_losses_of_the_batch():
    pairs = group(reference_arrays("rde"), "pairs")
    image, text = (pairs[key].astype(np.float32) for key in ("image", "text"))
    person = pairs["pids"]
    for options in ({}, {"weight": "plus"}):
        one = pair_sdm(image, text, person, **options)
        np.testing.assert_allclose(one.mean(), sdm(image, text, person, **options))
    for people in (None, person):
        one = pair_itc(image, text, person=people)
        np.testing.assert_allclose(one.mean(), itc(image, text, person=people))
