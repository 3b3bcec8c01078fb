# SPDX-License-Identifier: Apache-2.0
"""Batches on their way to the devices."""

import numpy as np
import pytest

from data_pipeline.bad_images import BadImages
from fmfa_jax.machines.mesh import make_mesh
from fmfa_jax.methods import METHODS
from fmfa_jax.training import session

BROKEN = 20


@pytest.fixture
def feed(monkeypatch):
    """Yields the batches of some steps, and the list of those that have been read."""
    read = []

    def batches(session, start, stop, bad_images):
        for step in range(start, stop):
            if step == BROKEN:
                raise OSError("the disk is gone")
            read.append(step)
            yield dict.fromkeys(("image", "tokens", "person"), np.full(8, step)) | {
                "pair": np.zeros(8)
            }

    monkeypatch.setattr(session, "batches", batches)
    run = object.__new__(session.Session)
    object.__setattr__(run, "mesh", make_mesh())

    def feed(start, stop):
        method = object.__new__(METHODS["fmfa"])
        return session.device_batches(run, method, start, stop, BadImages())

    return feed, read


def steps(batches):
    return [int(batch["person"][0]) for batch in batches]


@pytest.mark.parametrize("stop", [3, 4, 5, 9])
def test_each_batch_comes_once_and_holds_what_the_step_may_see(feed, stop):
    feed, _ = feed
    batches = list(feed(3, stop))
    assert steps(batches) == list(range(3, stop))
    for batch in batches:
        assert batch.keys() == {"image", "tokens", "person"}
        assert len(batch["person"].sharding.device_set) == 8


def test_one_batch_is_on_its_way_and_no_more(feed):
    feed, read = feed
    batches = feed(0, 9)
    assert read == []
    for step in range(8):
        next(batches)
        assert read == list(range(step + 2))


def test_an_error_waits_for_its_batch(feed):
    feed, _ = feed
    batches = feed(BROKEN - 3, BROKEN + 3)
    last = [BROKEN - 3, BROKEN - 2, BROKEN - 1]
    assert steps(next(batches) for _ in last) == last
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
