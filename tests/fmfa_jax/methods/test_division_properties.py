# SPDX-License-Identifier: Apache-2.0
"""What holds of the division of the pairs, for any losses."""

import numpy as np
import pytest
from hypothesis import strategies as st

from fmfa_jax.methods.rde.division import (
    FITTINGS,
    coins,
    consensus,
    division,
    fit,
    kept,
    two_means,
    unit_range,
)
from tests.properties import TRIES, holds

SETTINGS = pytest.mark.parametrize("setting", FITTINGS)


@st.composite
def losses(draw: st.DrawFn) -> np.ndarray:
    """Of one value, of a few, of two kinds, or of any, from 1 to 60 pairs."""
    size = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["one", "few", "two kinds", "any"]))
    found = {
        "one": lambda: np.full(size, rng.exponential()),
        "few": lambda: rng.integers(0, 3, size) / 2,
        "two kinds": lambda: rng.normal(1 + 4 * (rng.random(size) < 0.3), 0.2) ** 2,
        "any": lambda: rng.exponential(size=size),
    }[kind]()
    return (found * 2.0 ** draw(st.integers(-20, 20))).astype(np.float32)


@TRIES
@SETTINGS
def test_a_fit_is_finite_and_its_parts_are_a_mixture(setting, tries):
    def check(found):
        x = unit_range(found)
        assert x.min() >= 0 and x.max() <= 1
        if np.ptp(x):
            fitted = fit(x, fitting=FITTINGS[setting])
            assert np.isclose(fitted.shares.sum(), 1) and (fitted.shares > 0).all()
            assert 0 <= fitted.means[0] <= fitted.means[1] <= 1 + 1e-9
            assert (fitted.variances >= FITTINGS[setting].floor).all()
            low = fitted.low(x)
            assert np.isfinite(low).all() and low.min() >= 0 and low.max() <= 1

    holds(check, tries, found=losses())


@TRIES
@SETTINGS
def test_order_and_scale_of_the_losses_do_not_matter(setting, tries):
    def check(found, seed, power):
        fitting = FITTINGS[setting]
        order = np.random.default_rng(seed).permutation(len(found))
        want = kept(found, fitting)
        # Sums in another order may move what lies on the border.
        x = unit_range(found)
        border = np.zeros(len(x), bool)
        if np.ptp(x):
            border = np.abs(fit(x, fitting=fitting).low(x) - 0.5) < 1e-6
        moved = kept(found[order] * np.float32(2.0) ** power, fitting)
        np.testing.assert_array_equal(
            moved[~border[order]], want[order][~border[order]]
        )

    holds(
        check,
        tries,
        found=losses(),
        seed=st.integers(0, 99),
        power=st.integers(-20, 20),
    )


@TRIES
@SETTINGS
def test_equal_losses_share_a_fate_and_one_value_keeps_all(setting, tries):
    def check(found):
        chosen = kept(found, FITTINGS[setting])
        for value in np.unique(found):
            assert len(set(chosen[found == value].tolist())) == 1
        if not np.ptp(found):
            assert chosen.all()

    holds(check, tries, found=losses())


@TRIES
def test_the_split_in_two_is_the_best_there_is(tries):
    def check(found):
        x = unit_range(found)
        if not np.ptp(x):
            return
        low = two_means(x)

        def within(chosen: np.ndarray) -> float:
            parts = (x[chosen], x[~chosen])
            return sum(((part - part.mean()) ** 2).sum() for part in parts)

        splits = [within(x <= value) for value in np.unique(x)[:-1]]
        assert low.any() and not low.all()
        np.testing.assert_allclose(within(low), min(splits), atol=1e-9)

    holds(check, tries, found=losses())


@TRIES
def test_two_that_agree_need_no_coin_and_may_change_places(tries):
    def check(one, seed, epoch):
        tossed = coins(seed, epoch, len(one))
        np.testing.assert_array_equal(tossed, coins(seed, epoch, len(one)))
        a, b = kept(one), kept(one[::-1].copy())
        both = consensus(a, b, tossed)
        np.testing.assert_array_equal(both, consensus(b, a, tossed))
        np.testing.assert_array_equal(both[a == b], a[a == b])
        np.testing.assert_array_equal(division(one, one, tossed), a)

    holds(check, tries, one=losses(), seed=st.integers(0, 9), epoch=st.integers(0, 9))
