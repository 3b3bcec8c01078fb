# SPDX-License-Identifier: Apache-2.0
"""Confident consensus division (CCD): the losses of an epoch become weights of pairs.

All of this is on the host, alike on every process, and a function of its arguments: a
run that was killed in the middle decides the same when it does so again.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Float32, Int

from fmfa_jax.methods.rde.division import FITTINGS, check_finite, coins, division


class PairLosses(NamedTuple):
    """What a pass over the training pairs found.

    Attributes:
        bge: Loss of each pair on the global features.
        tse: Loss of each pair on the token selection embedding.
        met: Which pairs the pass met; an epoch leaves out those that fill no batch.
    """

    bge: Float32[np.ndarray, " pairs"]
    tse: Float32[np.ndarray, " pairs"]
    met: Bool[np.ndarray, " pairs"]


def collect(measured: Iterable[Mapping[str, jax.Array]], *, pairs: int) -> PairLosses:
    """Fetch the losses of all batches, each while the next one is computed.

    Args:
        measured: A dict for each batch: "pair", "bge" and, with that head, "tse", of
            the whole batch on every process.
        pairs: Training pairs.
    """
    bge, tse = np.zeros(pairs, np.float32), np.zeros(pairs, np.float32)
    met = np.zeros(pairs, np.bool_)

    def keep(batch: Mapping[str, jax.Array]) -> None:
        """Keep the losses of a batch's pairs."""
        rows = jax.device_get(dict(batch))
        bge[rows["pair"]] = rows["bge"]
        tse[rows["pair"]] = rows.get("tse", rows["bge"])
        met[rows["pair"]] = True

    waiting = None
    for batch in measured:
        if waiting is not None:
            keep(waiting)
        waiting = batch
    if waiting is not None:
        keep(waiting)
    return PairLosses(bge, tse, met)


def weights(
    found: PairLosses, *, mixture: str, seed: int, epoch: int
) -> Float32[np.ndarray, " pairs"]:
    """1 for the pairs of an epoch to learn from, 0 for the others.

    Pairs that the epoch leaves out count as before the first division.

    Args:
        found: Of the pass before the epoch.
        mixture: One of `FITTINGS`.
        seed: The run's.
        epoch: 0 for the first.
    """
    met = found.met
    for losses in (found.bge, found.tse):
        check_finite(losses[met], np.flatnonzero(met))
    tossed = coins(seed, epoch, len(met))[met]
    kept = division(found.bge[met], found.tse[met], tossed, FITTINGS[mixture])
    logging.info(
        "epoch %d learns from %.1f %% of its %d pairs",
        epoch + 1,
        100 * kept.mean(),
        len(kept),
    )
    chosen = np.ones(len(met), np.float32)
    chosen[met] = kept
    return chosen


def quality(
    kept: Bool[np.ndarray, " n"],
    pair: Int[np.ndarray, " n"],
    wrong: Bool[np.ndarray, " pairs"] | None,
) -> dict[str, float]:
    """The share of pairs that were kept and, with the truth known, how well chosen.

    Args:
        kept: Which of some pairs were learned from.
        pair: Their numbers.
        wrong: Which training pairs are known to be wrong; None: unknown.
    """
    figures = {"kept_share": float(kept.mean())}
    if wrong is None:
        return figures
    right = ~wrong[pair]
    if kept.any():
        figures["kept_precision"] = float(right[kept].mean())
    if right.any():
        figures["kept_recall"] = float(kept[right].mean())
    return figures
