# SPDX-License-Identifier: Apache-2.0
"""The losses that RDE weighs pair by pair, against its code's numbers (rde.npz)."""

import functools

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


def gradients(loss, image, text, weight):
    """Losses of the pairs, and the gradients of their weighted sum."""

    def total(image, text):
        pairs = loss(image, text)
        return (weight * pairs).sum(), pairs

    grad = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (_, pairs), slopes = grad(image, text)
    return pairs, slopes


@jax.jit
def measured(image, text, person, weight):
    """All losses by name, in one program for each shape of features."""
    return {
        name: gradients(lambda i, t, f=loss: f(i, t, person), image, text, weight)
        for name, loss in LOSSES.items()
    }


def assert_near(got, wanted, tolerance, what):
    """By the norm of the whole array."""
    error = np.linalg.norm(np.asarray(got) - wanted)
    assert error <= tolerance * np.linalg.norm(wanted), what


def assert_finite(results):
    for array in jax.tree.leaves(results):
        assert np.isfinite(array).all()


@pytest.mark.parametrize("features", FEATURES)
def test_pairs_of_the_model_equal_the_official_code(features):
    arrays = reference_arrays("rde")
    image, text = (jnp.float32(arrays[key]) for key in FEATURES[features])
    weight = np.float32(arrays["in/label_hat"])
    results = measured(image, text, arrays["in/pids"], weight)
    for name, (pairs, slopes) in results.items():
        assert_near(pairs, arrays[f"per/{name}/{features}"], 1e-4, name)
        for got, side in zip(slopes, ("image", "text"), strict=True):
            wanted = arrays[f"per_grad/{name}/{features}/{side}"]
            assert_near(got, wanted, 1e-4, f"{name} {side}")
        for kind, share in (("ones", np.ones_like(weight)), ("some", weight)):
            wanted = arrays[f"rbs/{name}/{features}_{kind}"]
            total = (share * pairs).sum() / (share.sum() if name in AVERAGED else 1)
            np.testing.assert_allclose(total, wanted, rtol=1e-5, err_msg=name)


def test_made_features_equal_the_official_code_in_float64():
    stored = group(reference_arrays("rde"), "pairs")
    with jax.enable_x64(True):
        inputs = [jnp.asarray(stored[key]) for key in ("image", "text", "pids")]
        results = jax.device_get(measured(*inputs, stored["weight"]))
    for name, (pairs, slopes) in results.items():
        np.testing.assert_allclose(pairs, stored[name], rtol=1e-7, atol=1e-12)
        for got, side in zip(slopes, ("image", "text"), strict=True):
            assert_near(got, stored[f"grad/{name}/{side}"], 1e-7, f"{name} {side}")


def test_without_negatives_or_directions_all_is_finite():
    """The official TAL has the same values for one person, and NaN as gradient."""
    stored = group(reference_arrays("rde"), "pairs")
    image, text = (jnp.float32(stored[key]) for key in ("image", "text"))
    one, ones = jnp.zeros(len(image), jnp.int32), jnp.ones(len(image))
    results = measured(image, text, one, ones)
    assert_finite(results)
    for name, (pairs, _) in results.items():
        np.testing.assert_allclose(pairs, stored[f"one_person/{name}"], atol=1e-5)
    assert not any(np.any(slope) for slope in results["TAL"][1])
    assert_finite(measured(0 * image, text, one, ones))
    assert_finite(measured(0 * image, text, jnp.asarray(stored["pids"]), ones))


@pytest.mark.parametrize(
    ("person", "tau", "wanted"),
    [
        ([0, 1, 2, 3], 0.015, [0.1, 0.24511527, 0.27364818, 0]),
        ([0, 0, 2, 3], 0.015, [0, 0.10000163, 0.27364818, 0]),
        ([0, 0, 2, 3], 0.05, [0, 0.10522531, 0.27377986, 0]),
    ],
)
def test_tal_of_four_angles_by_hand(person, tau, wanted):
    text, image = (
        jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        for angle in jnp.deg2rad(jnp.asarray([[0.0, 20, 60, 200], [10, 40, 100, 170]]))
    )
    loss = functools.partial(tal, tau=tau, margin=0.1)
    got = jax.jit(loss)(image, text, jnp.asarray(person))
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


def test_tal_holds_below_the_temperature_where_exp_overflows():
    """Pairs are near copies, so cosines reach 1: exp(1 / .005) is 7e86."""
    rng = np.random.default_rng(3)
    image = rng.normal(size=(12, 6))
    text = image + 0.1 * rng.normal(size=(12, 6))
    image[5] = image[4]
    person = np.asarray([0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 8, 9])
    taus = (0.005, 0.01, 0.015, 0.1)

    @jax.jit
    def all_of_them(image, text):
        def loss(tau):
            return lambda i, t: tal(i, t, jnp.asarray(person), tau=tau, margin=0.8)

        return [gradients(loss(tau), image, text, 1.0) for tau in taus]

    results = all_of_them(*(jnp.float32(x) for x in (image, text)))
    assert_finite(results)
    for tau, (pairs, slopes) in zip(taus, results, strict=True):
        wanted = slow_tal(image, text, person, tau, 0.8)
        assert np.count_nonzero(wanted) > 8
        np.testing.assert_allclose(pairs, wanted, rtol=1e-5, atol=1e-6)
        assert all(np.any(slope) for slope in slopes)


def test_pairs_move_with_the_batch_and_ignore_lengths():
    arrays = reference_arrays("rde")
    image, text = (jnp.float32(arrays[key]) for key in FEATURES["bge"])
    person, order = arrays["in/pids"], np.asarray([3, 1, 7, 5, 0, 4, 2, 6])
    ones = np.ones(len(order), np.float32)
    still = measured(image, text, person, ones)
    moved = measured(7 * image[order], text[order] / 3, person[order], ones)
    for name, (pairs, _) in still.items():
        np.testing.assert_allclose(moved[name][0], pairs[order], atol=2e-5)


def test_means_of_pairs_are_the_losses_of_the_batch():
    stored = group(reference_arrays("rde"), "pairs")
    image, text = (jnp.float32(stored[key]) for key in ("image", "text"))

    @jax.jit
    def both(image, text, person):
        plus = {"weight": "plus"}
        return [
            (pair_sdm(image, text, person, **plus), sdm(image, text, person, **plus)),
            (pair_itc(image, text, person=person), itc(image, text, person=person)),
        ]

    for pairs, mean in both(image, text, jnp.asarray(stored["pids"])):
        np.testing.assert_allclose(pairs.mean(), mean, rtol=1e-6)
