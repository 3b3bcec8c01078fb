# SPDX-License-Identifier: Apache-2.0
"""Which pairs make up the global batch of a step: pure functions of (seed, step).

No iterator state exists. To resume at step k is to ask for step k, and every host,
worker and device count asks for the same global batch. The random numbers are the raw
stream of a PCG64, which NumPy promises never to change, and not the output of
`permutation` or `shuffle`, which it does not promise: an order survives an upgrade.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt64

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
    """Return `IdentityOrder(labels, ...).batch_ids(step)`, for a single step."""
    identity_order = IdentityOrder(
        labels, seed=seed, batch_size=batch_size, per_identity=per_identity
    )
    return identity_order.batch_ids(step)


class IdentityOrder:
    """Global batches of P = batch_size / K identities, K pairs of each.

    A round takes every identity once, P a step in random order; what does not fill a
    batch at its end is left out of that round. An identity's K pairs are drawn anew
    each round, without repetition where it has K; where it has fewer, they are repeated
    in turn. Still a pure function of (seed, step): only tables are kept.
    """

    def __init__(
        self,
        labels: Int[np.ndarray, "p"],
        *,
        seed: int,
        batch_size: int,
        per_identity: int = 4,
    ) -> None:
        """Count the identities.

        Args:
            labels: the identity of each pair, any integers from 0.
            seed: the run's seed.
            batch_size: pairs in the global batch.
            per_identity: K.

        Raises:
            ValueError: a label is negative (unknown), K does not divide the batch, or
                there are fewer identities than P.
        """
        _check_known(labels)
        self._per_batch = _identities_per_batch(batch_size, per_identity)
        self._turn = np.arange(per_identity)
        self._seed = seed
        _, self._identity, self._counts = np.unique(
            labels, return_inverse=True, return_counts=True
        )
        self._starts = np.cumsum(self._counts) - self._counts
        if len(self._counts) < self._per_batch:
            raise ValueError(
                f"the identity sampler wants {self._per_batch} identities a batch "
                f"({batch_size} pairs / {per_identity}), the data set has "
                f"{len(self._counts)}: choose a batch size of at most "
                f"{len(self._counts) * per_identity}"
            )

    def batch_ids(self, step: int) -> Int64[np.ndarray, "b"]:
        """Return the pair indices of a step's global batch, identity by identity."""
        identities = len(self._counts)
        number, position = divmod(step, identities // self._per_batch)
        chosen = _permutation(identities, self._seed, ROUNDS, number)
        chosen = chosen[position * self._per_batch :][: self._per_batch]
        turn = self._turn % self._counts[chosen][:, None]
        return _members(self, number)[self._starts[chosen][:, None] + turn].ravel()

    def grouped(self, number: int) -> Int64[np.ndarray, "p"]:
        """Return the pairs grouped by identity, in a round's random order within."""
        words = random_words(len(self._identity), self._seed, MEMBERS, number)
        return np.lexsort((words, self._identity))


def replacement_ids(
    step: int,
    position: int,
    *,
    seed: int,
    batch: Int[np.ndarray, "b"],
    usable: Bool[np.ndarray, "p"],
) -> Int64[np.ndarray, "n"]:
    """Return the pairs to try in turn where the one at a position is unusable.

    The pairs outside the batch, in an order that belongs to the step, are dealt out to
    its rows. So no two rows can take the same one, and a process need not know which
    pictures the others could not read: a batch stays the same on any number of them.

    Args:
        step: the step of the global batch.
        position: the row in the global batch.
        seed: the run's seed.
        batch: the pairs of the global batch.
        usable: which pairs may stand in at all.
    """
    outside = usable.copy()
    outside[batch] = False
    pool = np.flatnonzero(outside)
    words = random_words(len(pool), seed, REPLACEMENTS, step)
    return pool[np.argsort(words, kind="stable")][position :: len(batch)]


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
def _members(identity_order: IdentityOrder, number: int) -> Int64[np.ndarray, "p"]:
    """Memoise `grouped`: a round lasts many steps."""
    return _frozen(identity_order.grouped(number))


def _check_known(labels: Int[np.ndarray, "p"]) -> None:
    unknown = int(np.count_nonzero(labels < 0))
    if unknown:
        raise ValueError(
            f"the identity sampler wants a person id for every pair, {unknown} pairs "
            "have none: use the plain shuffle or state the ids"
        )


def _frozen(values: np.ndarray) -> np.ndarray:
    """Make a memoised array read-only: later callers get the same one."""
    values.setflags(write=False)
    return values
