# SPDX-License-Identifier: Apache-2.0
"""The division of the pairs: against RDE's code (rde.npz) and real scikit-learn."""

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from fmfa_jax.methods.rde.division import (
    FITTINGS,
    coins,
    consensus,
    credible,
    division,
    fit,
    kept,
    two_means,
    unit_range,
)
from tests.reference_case import group, reference_arrays

CASES = ("bimodal", "unimodal", "overlapping")


def sample(rng, size=500, noisy=0.3):
    """Losses of right and of wrong pairs, which overlap a little."""
    right = rng.normal(0.2, 0.1, size - int(noisy * size))
    return np.concatenate([right, rng.normal(0.8, 0.15, int(noisy * size))])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("setting", FITTINGS)
def test_fits_and_votes_from_the_stored_start_equal_the_official_code(case, setting):
    arrays = group(reference_arrays("rde"), f"ccd/{case}")
    stored = group(arrays, setting)
    votes = []
    for side in "AB":
        x = unit_range(arrays[side])
        start = stored[f"init_low_{side}"].astype(bool)
        found = fit(x, start, FITTINGS[setting])
        for name, value in (
            ("means", found.means),
            ("vars", found.variances),
            ("weights", found.shares),
            ("lower_bound", found.likelihood),
            ("prob", found.low(x)),
        ):
            np.testing.assert_allclose(value, stored[f"{name}_{side}"], atol=1e-5)
        assert found.rounds == stored[f"n_iter_{side}"]
        assert found.converged == stored[f"converged_{side}"]
        votes.append(credible(stored[f"prob_{side}"]))
        np.testing.assert_array_equal(votes[-1], stored[f"pred_{side}"])
    drawn = np.zeros(len(x), bool)
    drawn[stored["consensus"] == 1] = stored["draw"]
    np.testing.assert_array_equal(consensus(*votes, drawn), stored["label_hat"])


@pytest.mark.parametrize("case", ["bimodal", "overlapping"])
@pytest.mark.parametrize("setting", FITTINGS)
def test_our_own_start_ends_where_the_official_one_did(case, setting):
    arrays = group(reference_arrays("rde"), f"ccd/{case}")
    stored = group(arrays, setting)
    for side in "AB":
        x = unit_range(arrays[side])
        np.testing.assert_array_equal(two_means(x), stored[f"init_low_{side}"])
        got = kept(arrays[side], FITTINGS[setting])
        np.testing.assert_array_equal(got, stored[f"pred_{side}"])


@pytest.mark.parametrize("case", ["above", "short", "ties", "saturated", "mixed"])
def test_the_threshold_falls_back_as_in_the_official_code(case):
    stored = group(reference_arrays("rde"), f"split/{case}")
    np.testing.assert_array_equal(credible(stored["prob"]), stored["pred"])


@pytest.mark.parametrize("setting", FITTINGS)
@pytest.mark.parametrize("seed", range(3))
def test_a_fit_equals_scikit_learn(setting, seed):
    """Its start is ours: the posteriors of a one-hot start give these parameters."""
    rng = np.random.default_rng(seed)
    x = unit_range(sample(rng, noisy=(0.1, 0.3, 0.5)[seed]))
    fitting = FITTINGS[setting]
    low = two_means(x)
    groups = (x[low], x[~low])
    theirs = GaussianMixture(
        2,
        max_iter=fitting.rounds,
        tol=fitting.tolerance,
        reg_covar=fitting.floor,
        weights_init=[len(g) / len(x) for g in groups],
        means_init=[[g.mean()] for g in groups],
        precisions_init=[[[1 / (g.var() + fitting.floor)]] for g in groups],
    ).fit(x[:, None])
    ours = fit(x, fitting=fitting)
    low_first = np.argsort(theirs.means_[:, 0])
    wanted = theirs.predict_proba(x[:, None])[:, low_first[0]]
    np.testing.assert_allclose(ours.low(x), wanted, atol=1e-8)
    np.testing.assert_allclose(ours.means, theirs.means_[low_first, 0], atol=1e-8)
    assert (ours.rounds, ours.converged) == (theirs.n_iter_, theirs.converged_)


@pytest.mark.parametrize("seed", range(5))
def test_the_start_is_the_best_of_all_splits(seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 12, 30) / 11 if seed % 2 else rng.gamma(2, size=30)

    def spread(low):
        return sum(len(g) * g.var() for g in (x[low], x[~low]))

    splits = [x <= value for value in np.unique(x)[:-1]]
    assert spread(two_means(x)) == pytest.approx(min(map(spread, splits)))


def test_right_pairs_are_kept_and_wrong_ones_are_not():
    rng = np.random.default_rng(5)
    wrong = np.arange(500) >= 350
    keep = division(sample(rng), sample(rng), coins(1, 1, 500))
    assert (keep == ~wrong).mean() > 0.95


def test_an_order_of_pairs_does_not_matter():
    rng = np.random.default_rng(6)
    losses = sample(rng)
    order = rng.permutation(len(losses))
    np.testing.assert_array_equal(kept(losses)[order], kept(losses[order]))


@pytest.mark.parametrize("setting", FITTINGS)
def test_equal_losses_and_an_outlier_speak_against_none_of_the_rest(setting):
    fitting = FITTINGS[setting]
    assert kept(np.full(40, 3.0), fitting).all()
    assert kept(np.zeros(1), fitting).all()
    losses = np.random.default_rng(0).normal(0.5, 0.1, 400)
    losses[7] = 1e6
    want = np.arange(400) != 7
    np.testing.assert_array_equal(kept(losses, fitting), want)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_refused(bad):
    losses = np.asarray([0.1, bad, 0.3, bad])
    with pytest.raises(ValueError, match=r"2 of 4 pairs are not finite.*pair 1"):
        division(np.zeros(4), losses, np.zeros(4, bool))


def test_coins_are_fair_and_a_function_of_seed_epoch_and_pair():
    tossed = coins(1, 4, 20000)
    np.testing.assert_array_equal(tossed[:50], coins(1, 4, 50))
    assert tossed.mean() == pytest.approx(0.5, abs=0.02)
    for other in (coins(2, 4, 20000), coins(1, 5, 20000)):
        assert (tossed == other).mean() == pytest.approx(0.5, abs=0.02)
