# SPDX-License-Identifier: Apache-2.0
"""Which pairs make up the global batch of a step: pure functions of (seed, step).

No iterator state exists. To resume at step k is to ask for step k, and every host,
worker and device count asks for the same global batch. The random numbers are the raw
stream of a PCG64, which NumPy promises never to change, and not the output of
`permutation` or `shuffle`, which it does not promise: an order survives an upgrade.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Int, Int64, UInt64

SHUFFLE, ROUNDS, MEMBERS, REPLACEMENTS = 1, 2, 3, 4
"""Salts: every use of a seed draws from a stream of its own."""


def random_words(count: int, *key: int) -> UInt64[np.ndarray, "n"]:
    """Return `count` random 64-bit words, a pure function of the non-negative `key`."""
    return np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)


def steps_per_epoch(*, size: int, batch_size: int) -> int:
    """Return the number of whole batches in `size` pairs; the rest waits an epoch.

    Raises:
        ValueError: there are fewer pairs than one batch holds.
    """
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size}: wanted at least 1")
    if size < batch_size:
        raise ValueError(
            f"the data set has {size} pairs, fewer than the batch size {batch_size}: "
            f"choose a batch size of at most {size}"
        )
    return size // batch_size


def batch_ids(
    step: int, *, seed: int, size: int, batch_size: int
) -> Int64[np.ndarray, "b"]:
    """Return the pair indices of a step's global batch: a plain shuffle.

    Each epoch (`steps_per_epoch` steps) is another permutation of the pairs; what does
    not fill a batch at its end is left out of that epoch.

    Raises:
        ValueError: there are fewer pairs than one batch holds.
    """
    epoch, position = divmod(step, steps_per_epoch(size=size, batch_size=batch_size))
    order = _permutation(size, seed, SHUFFLE, epoch)
    return order[position * batch_size : (position + 1) * batch_size].copy()


def identity_batch_ids(
    step: int,
    *,
    seed: int,
    labels: Int[np.ndarray, "p"],
    batch_size: int,
    per_identity: int = 4,
) -> Int64[np.ndarray, "b"]:
    """Return a global batch: P = batch_size / K identities, K pairs of each.

    A round takes every identity once, P a step in random order; what does not fill a
    batch at its end is left out of that round. An identity's K = `per_identity` pairs
    are drawn anew each round, without repetition where it has K; where it has fewer,
    they are repeated in turn.

    Args:
        step: the step, from 0.
        seed: the run's seed.
        labels: the identity of each pair, any integers from 0.
        batch_size: pairs in the global batch.
        per_identity: K.

    Raises:
        ValueError: a label is negative (unknown), K does not divide the batch, or there
            are fewer identities than P.
    """
    wanted = _identities_per_batch(batch_size, per_identity)
    key = np.ascontiguousarray(labels, dtype=np.int64).tobytes()
    identities = _count_identities(key)
    if identities < wanted:
        raise ValueError(
            f"the identity sampler wants {wanted} identities a batch ({batch_size} "
            f"pairs / {per_identity}), the data set has {identities}: choose a batch "
            f"size of at most {identities * per_identity}"
        )
    number, position = divmod(step, identities // wanted)
    chosen = _permutation(identities, seed, ROUNDS, number)
    chosen = chosen[position * wanted : (position + 1) * wanted]
    order, starts, counts = _members(key, seed, number)
    turn = np.arange(per_identity) % counts[chosen][:, None]
    return order[starts[chosen][:, None] + turn].ravel()


def replacement_ids(
    step: int, position: int, *, seed: int, size: int, count: int
) -> Int64[np.ndarray, "n"]:
    """Return the pairs to try in turn where the one at a position is unusable.

    Args:
        step: the step of the global batch.
        position: the row in the global batch.
        seed: the run's seed.
        size: pairs in the data set.
        count: how many to return.
    """
    words = random_words(count, seed, REPLACEMENTS, step, position)
    return (words % np.uint64(size)).astype(np.int64)


def _identities_per_batch(batch_size: int, per_identity: int) -> int:
    if per_identity < 1 or batch_size < 1 or batch_size % per_identity:
        raise ValueError(
            f"batch size {batch_size} is not a positive multiple of the "
            f"{per_identity} pairs per identity that the identity sampler draws"
        )
    return batch_size // per_identity


@lru_cache(maxsize=4)
def _permutation(size: int, *key: int) -> Int64[np.ndarray, "n"]:
    return _frozen(np.argsort(random_words(size, *key), kind="stable"))


@lru_cache(maxsize=4)
def _count_identities(labels: bytes) -> int:
    known = np.unique(np.frombuffer(labels, dtype=np.int64))
    if known.size and known[0] < 0:
        unknown = int(np.count_nonzero(np.frombuffer(labels, dtype=np.int64) < 0))
        raise ValueError(
            f"the identity sampler wants a person id for every pair, {unknown} pairs "
            "have none: use the plain shuffle or state the ids"
        )
    return int(known.size)


@lru_cache(maxsize=2)
def _members(
    labels: bytes, seed: int, number: int
) -> tuple[Int64[np.ndarray, "p"], Int64[np.ndarray, "k"], Int64[np.ndarray, "k"]]:
    """Return pairs grouped by identity, shuffled within; each one's start and count."""
    identity = np.frombuffer(labels, dtype=np.int64)
    words = random_words(identity.size, seed, MEMBERS, number)
    _, counts = np.unique(identity, return_counts=True)
    order = np.lexsort((words, identity))
    starts = np.cumsum(counts) - counts
    return _frozen(order), _frozen(starts), _frozen(counts)


def _frozen(values: np.ndarray) -> np.ndarray:
    """Make a memoised array read-only: later callers get the same one."""
    values.setflags(write=False)
    return values
