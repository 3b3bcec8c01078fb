# SPDX-License-Identifier: Apache-2.0
"""Which pairs make up the global batch of a step: pure functions of (seed, step).

There is no iterator state. To resume at step k is to ask for step k, and any number of
hosts, workers and devices gets the same global batches. The random numbers come from
the raw PCG64 stream, which NumPy promises never to change, rather than `permutation` or
`shuffle`, whose output it does not promise: an order survives an upgrade.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt64

from data_pipeline import hints

SAMPLERS = ("shuffle", "identity")
"""How batches are drawn: by a plain shuffle, or as K pairs of each of P identities."""

SHUFFLE, ROUNDS, MEMBERS, REPLACEMENTS, COINS = 1, 2, 3, 4, 5
"""Salts: every use of a seed draws from a stream of its own."""


def random_words(count: int, *key: int) -> UInt64[np.ndarray, "n"]:
    """Return `count` random 64-bit words, a pure function of the non-negative `key`."""
    return np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)


def steps_per_epoch(*, size: int, batch_size: int) -> int:
    """Return the number of full batches in `size` pairs; an epoch drops the rest.

    Raises:
        ValueError: If there are fewer pairs than one batch holds.
    """
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size}: wanted at least 1")
    if size < batch_size:
        raise ValueError(
            f"the data set has {size} pairs, fewer than the batch size {batch_size}: "
            f"choose a batch size of at most {size}"
        )
    return size // batch_size


def batch_order(
    sampler: str,
    labels: Int[np.ndarray, "p"],
    *,
    seed: int,
    batch_size: int,
    per_identity: int,
) -> Callable[[int], Int64[np.ndarray, "b"]]:
    """Return the function from a step to the pair indices of its global batch.

    Args:
        sampler: One of `SAMPLERS`.
        labels: Identity of each pair, -1 if unknown.
        seed: The run's seed.
        batch_size: Number of pairs in a global batch.
        per_identity: K of the identity sampler.

    Raises:
        ValueError: If the sampler is unknown or the settings do not fit the pairs.
    """
    size = len(labels)
    steps_per_epoch(size=size, batch_size=batch_size)
    if sampler == "shuffle":
        return lambda step: batch_ids(step, seed=seed, size=size, batch_size=batch_size)
    if sampler == "identity":
        return IdentityOrder(
            labels, seed=seed, batch_size=batch_size, per_identity=per_identity
        ).batch_ids
    raise ValueError(hints.unknown("sampler", sampler, SAMPLERS))


def batch_ids(
    step: int, *, seed: int, size: int, batch_size: int
) -> Int64[np.ndarray, "b"]:
    """Return the pair indices of a step's global batch in a plain shuffle.

    Each epoch (`steps_per_epoch` steps) is a new permutation of the pairs, without
    those at its end that do not fill a batch.

    Raises:
        ValueError: If there are fewer pairs than one batch holds.
    """
    epoch, position = divmod(step, steps_per_epoch(size=size, batch_size=batch_size))
    order = _permutation(size, seed, SHUFFLE, epoch)
    return order[position * batch_size : (position + 1) * batch_size].copy()


class IdentityOrder:
    """Global batches of K pairs from each of P = batch_size / K identities.

    A round visits every identity once in random order, P per step, without those at its
    end that do not fill a batch. The K pairs of an identity are drawn anew in each
    round, without repetition if it has K; if it has fewer, they are repeated in turn.
    Batches remain a pure function of (seed, step): only tables are kept.
    """

    def __init__(
        self,
        labels: Int[np.ndarray, "p"],
        *,
        seed: int,
        batch_size: int,
        per_identity: int = 4,
    ) -> None:
        """Index the pairs by identity.

        Args:
            labels: Identity of each pair, any integers from 0.
            seed: The run's seed.
            batch_size: Number of pairs in a global batch.
            per_identity: K.

        Raises:
            ValueError: If a label is negative (unknown), K does not divide the batch,
                or there are fewer than P identities.
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
        """Return all pairs grouped by identity, shuffled within each for a round."""
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
    """Return the pairs to try, in turn, in place of an unusable one.

    The pairs outside the batch are shuffled by step and dealt out to its rows. No two
    rows can therefore take the same pair, and a process need not know which pictures
    the others failed to read: the batch is the same on any number of processes.

    Args:
        step: Step of the global batch.
        position: Row in the global batch.
        seed: The run's seed.
        batch: Pairs of the global batch.
        usable: Which pairs may serve as replacements at all.
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
    """Memoise `grouped`, because a round lasts many steps."""
    return _frozen(identity_order.grouped(number))


def _check_known(labels: Int[np.ndarray, "p"]) -> None:
    unknown = int(np.count_nonzero(labels < 0))
    if unknown:
        raise ValueError(
            f"the identity sampler wants a person id for every pair, but {unknown} "
            "pairs have none: use the plain shuffle or provide the ids"
        )


def _frozen(values: np.ndarray) -> np.ndarray:
    """Make a memoised array read-only, because later callers get the same one."""
    values.setflags(write=False)
    return values
