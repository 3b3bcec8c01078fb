# SPDX-License-Identifier: Apache-2.0
"""What holds of every order of pairs and of the noise, for any sizes and seeds."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import strategies as st

from data_pipeline.noise import noisy_index
from data_pipeline.order import (
    SAMPLERS,
    IdentityOrder,
    batch_order,
    random_words,
    replacement_ids,
    steps_per_epoch,
)
from tests.properties import TRIES, holds

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def asked(draw: st.DrawFn) -> dict:
    """Labels of pairs, and settings that fit them."""
    labels = draw(st.lists(st.integers(0, 9), min_size=1, max_size=40))
    each = draw(st.integers(1, 4))
    most = len(set(labels)) if each * len(set(labels)) <= len(labels) else 1
    wanted = each * draw(st.integers(1, most))
    return {
        "labels": np.array(labels),
        "batch_size": min(wanted, len(labels)) // each * each or each,
        "per_identity": each,
        "seed": draw(SEEDS),
    }


def fits(found: dict) -> bool:
    return found["batch_size"] <= len(found["labels"])


@TRIES
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_is_a_function_of_seed_and_step(sampler, tries):
    def check(found, step):
        one, other = (batch_order(sampler, **found) for _ in range(2))
        for earlier in range(3):  # history leaves no trace
            other(step + earlier)
        got = one(step)
        np.testing.assert_array_equal(got, other(step))
        assert len(got) == found["batch_size"]
        assert 0 <= got.min() and got.max() < len(found["labels"])

    holds(check, tries, found=asked().filter(fits), step=st.integers(0, 10**6))


@TRIES
def test_an_epoch_of_the_shuffle_has_each_pair_once_at_most(tries):
    def check(found, epoch):
        size, batch = len(found["labels"]), found["batch_size"]
        steps = steps_per_epoch(size=size, batch_size=batch)
        order = batch_order("shuffle", **found)
        seen = np.concatenate([order(epoch * steps + i) for i in range(steps)])
        assert len(seen) == len(set(seen.tolist())) == steps * batch
        assert size - len(seen) < batch

    holds(check, tries, found=asked().filter(fits), epoch=st.integers(0, 99))


@TRIES
def test_a_batch_of_the_identity_sampler_has_k_pairs_of_each_person(tries):
    def check(found, step):
        labels, each = found["labels"], found["per_identity"]
        got = IdentityOrder(**found).batch_ids(step)
        owners = Counter(labels[got].tolist())
        assert set(owners.values()) == {each}
        for owner in owners:
            own, has = got[labels[got] == owner], int((labels == owner).sum())
            assert len(set(own.tolist())) == min(each, has)

    holds(check, tries, found=asked().filter(fits), step=st.integers(0, 999))


@TRIES
def test_replacements_are_usable_from_outside_and_nobody_elses(tries):
    def check(found, step, seed):
        size = len(found["labels"])
        usable = random_words(size, seed) % np.uint64(2) == 0
        batch = batch_order("shuffle", **found)(step)
        each = [
            replacement_ids(step, i, seed=seed, batch=batch, usable=usable).tolist()
            for i in range(len(batch))
        ]
        dealt = [pair for own in each for pair in own]
        outside = set(np.flatnonzero(usable).tolist()) - set(batch.tolist())
        assert len(dealt) == len(set(dealt)) and set(dealt) == outside

    holds(check, tries, found=asked().filter(fits), step=st.integers(0, 99), seed=SEEDS)


@TRIES
def test_noise_permutes_a_share_of_the_captions(tries):
    def check(size, rate, seed):
        index = noisy_index(size, rate, seed=seed)
        np.testing.assert_array_equal(np.sort(index), np.arange(size))
        np.testing.assert_array_equal(index, noisy_index(size, rate, seed=seed))
        assert np.count_nonzero(index != np.arange(size)) <= int(rate * size)

    holds(check, tries, size=st.integers(0, 200), rate=st.floats(0, 1), seed=SEEDS)
