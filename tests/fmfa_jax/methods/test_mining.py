# SPDX-License-Identifier: Apache-2.0
"""Mining in blocks against the whole similarity matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmfa_jax.methods.weak.memory import init_bank, update_bank
from fmfa_jax.methods.weak.mining import _top_k_in_chunks, mine, nearest_rows
from fmfa_jax.methods.weak.quality import count_links, mined_quality

update = jax.jit(update_bank)
mine_rows = jax.jit(mine, static_argnames=("links", "exclude", "threshold"))
search = jax.jit(nearest_rows, static_argnames=("count", "block"))


def bank_of(rows, *, pairs=None, dtype="float32"):
    """A bank for `pairs` pairs whose first rows are `rows`."""
    rows = jnp.asarray(rows, jnp.float32)
    bank = init_bank(pairs or len(rows), rows.shape[1], dtype=dtype)
    index = jnp.arange(len(rows))
    return update(bank, rows, rows, index, ready=False)


def dense(rows, anchors, count):
    """One sort of the whole matrix in float64; the first of equals stands first."""
    rows, anchors = np.asarray(rows, np.float64), np.asarray(anchors, np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    anchors = anchors / np.linalg.norm(anchors, axis=1, keepdims=True)
    cosines = anchors @ rows.T
    slot = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(cosines, slot, axis=1), slot


@pytest.fixture(scope="module")
def crowd():
    rng = np.random.default_rng(0)
    return rng.normal(size=(700, 6)) * 3, rng.normal(size=(5, 6))


# 768 rows with padding: blocks that divide, that do not, and one larger than all;
# 512 and 600 take the way over chunks, 600 not as it is no multiple of a chunk.
@pytest.mark.parametrize(
    ("block", "count"), [(3, 4), (100, 1), (256, 4), (512, 4), (600, 3), (5000, 4)]
)
def test_blocks_equal_the_dense_search(crowd, block, count):
    rows, anchors = crowd
    bank = bank_of(rows)
    similarity, slot = search(
        bank, jnp.asarray(anchors, jnp.float32), count=count, block=block
    )
    wanted = dense(rows, anchors, count)
    np.testing.assert_array_equal(slot, wanted[1])
    np.testing.assert_allclose(similarity, wanted[0], rtol=1e-5)


def test_top_k_over_chunks_keeps_the_order_of_ties():
    rng = np.random.default_rng(1)
    for values in (1, 2, 5):  # few different values: almost everything is a tie
        array = rng.integers(0, values, size=(200, 640)).astype(np.float32)
        # Few in a row, so that ties among the lesser ones are among the best, too.
        array = jnp.asarray(np.where(rng.random(array.shape) < 0.99, -np.inf, array))
        for count in (1, 4):
            got = _top_k_in_chunks(array.T, count)
            wanted = jax.lax.top_k(array, count)
            jax.tree.map(np.testing.assert_array_equal, got, tuple(wanted))


def test_equal_rows_come_in_their_order_over_blocks():
    rows = np.tile([[1.0, 0.0]], (40, 1))
    anchors = jnp.asarray([[2.0, 0.0]])
    for block in (3, 64):
        slot = search(bank_of(rows), anchors, count=4, block=block)[1]
        np.testing.assert_array_equal(slot, [[0, 1, 2, 3]])


def test_cosines_of_a_bfloat16_bank_are_float32(crowd):
    rows, anchors = crowd
    bank = bank_of(rows, dtype="bfloat16")
    rounded = np.asarray(jnp.asarray(rows, jnp.bfloat16).astype(jnp.float32))
    similarity, slot = search(
        bank, jnp.asarray(anchors, jnp.float32), count=4, block=256
    )
    wanted = dense(rounded, anchors, 4)
    np.testing.assert_array_equal(slot, wanted[1])
    np.testing.assert_allclose(similarity, wanted[0], rtol=1e-5)


def test_rows_that_were_never_written_are_never_mined():
    rows = np.eye(3, 4)
    bank = bank_of(rows, pairs=50)
    mined = mine_rows(
        bank, jnp.asarray(rows, jnp.float32), jnp.arange(3), links=5, threshold=-2.0
    )
    # Three rows are written, one of them is dropped as the nearest.
    np.testing.assert_array_equal(mined.valid.sum(axis=1), [2, 2, 2])
    assert (np.asarray(mined.slot)[np.asarray(mined.valid)] < 3).all()


def test_self_drops_the_own_row_wherever_it_stands():
    angle = np.deg2rad([0, 5, 10, 15, 20])
    rows = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    bank = bank_of(rows)
    anchors = jnp.asarray(rows[:1].repeat(3, axis=0), jnp.float32)
    index = jnp.asarray([0, 2, 4])  # nearest, in the middle, not among the candidates
    by_index = mine_rows(bank, anchors, index, exclude="self")
    np.testing.assert_array_equal(by_index.slot, [[1, 2, 3], [0, 1, 3], [0, 1, 2]])
    by_rank = mine_rows(bank, anchors, index, exclude="rank0")
    np.testing.assert_array_equal(by_rank.slot, [[1, 2, 3]] * 3)
    with pytest.raises(ValueError, match=r"exclude='own' is not known.*rank0, self"):
        mine_rows(bank, anchors, index, exclude="own")


def test_the_threshold_is_strict():
    bank = bank_of([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    anchor = jnp.asarray([[3.0, 0.0]])
    assert not mine_rows(
        bank, anchor, jnp.arange(1), threshold=1.0, links=2
    ).valid.any()
    valid = mine_rows(bank, anchor, jnp.arange(1), threshold=0.999, links=2).valid
    np.testing.assert_array_equal(valid, [[True, False]])


def test_separated_identities_are_mined_without_an_error():
    rng = np.random.default_rng(2)
    persons = np.repeat(np.arange(12), 4)
    centres = rng.normal(size=(12, 64)) * 5
    rows = centres[persons] + rng.normal(size=(48, 64)) * 0.3
    index = rng.permutation(48)[:16].astype(np.int32)
    live = rows[index] + rng.normal(size=(16, 64)) * 0.3
    mined = mine_rows(
        bank_of(rows),
        jnp.asarray(live, jnp.float32),
        jnp.asarray(index),
        exclude="self",
    )
    slot, valid = np.asarray(mined.slot), np.asarray(mined.valid)
    assert count_links(slot, valid, index, persons).links == 48
    records = [{"slot": slot, "valid": valid, "index": index}]
    quality = mined_quality(records, persons)
    assert quality == {"mined_precision": 1, "mined_recall": 1}


def test_quality_of_links_by_hand():
    persons = np.array([5, 5, 5, 7, 7, -1])
    index = np.array([0, 3, 5])
    slot = np.array([[0, 1, 3], [4, 5, 0], [1, 2, 3]])
    valid = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1]], bool)
    record = {"slot": slot, "valid": valid, "index": index}
    quality = count_links(slot, valid, index, persons)
    # Own rows, unknown persons and invalid links do not count: 1 and 3 for pair 0,
    # 4 for pair 3.
    assert (quality.links, quality.correct, quality.reachable) == (3, 2, 3)
    # Summed over steps, not averaged: the second step has no link at all.
    none = record | {"valid": np.zeros_like(valid)}
    assert mined_quality([record, none], persons) == {
        "mined_precision": pytest.approx(2 / 3),
        "mined_recall": pytest.approx(2 / 6),
    }
    assert "mined_precision" not in mined_quality([none], persons)
    assert mined_quality([record], np.full(6, -1)) == {}
    assert mined_quality([record], None) == {}
