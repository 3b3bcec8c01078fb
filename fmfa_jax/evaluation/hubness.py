# SPDX-License-Identifier: Apache-2.0
"""Nearest-neighbour normalisation: pictures that are near to everything step back.

Chowdhury et al., Nearest Neighbor Normalization Improves Multimodal Retrieval, EMNLP
2024: S'(q, g) = S(q, g) - alpha * mean of the k largest S(r, g) over a bank of
reference sentences r.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from fmfa_jax.evaluation.blocks import unit_rows
from fmfa_jax.evaluation.nearest import nearest
from fmfa_jax.evaluation.ranks import MatchRanks, score_ranks


@dataclass(frozen=True)
class Correction:
    """How strongly pictures step back, and by how many reference sentences."""

    k: int
    alpha: float


CORRECTIONS = {
    "cuhk_pedes": Correction(32, 0.6),
    "icfg_pedes": Correction(512, 0.8),
    "rstp_reid": Correction(32, 0.7),
}
"""The values that LPNC uses for each data set."""


def bank_bias(
    gallery: Float[np.ndarray, "g d"], bank: Float[np.ndarray, "r d"], k: int
) -> Float32[np.ndarray, "g"]:
    """Return each picture's mean cosine with its k nearest sentences of a bank.

    Raises:
        ValueError: The bank has fewer than k sentences, or a feature is not finite.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(
            f"expected k from 1 to the bank's {len(bank)} sentences, got {k}: --k"
        )
    return nearest(gallery, bank, k).similarity.mean(axis=1, dtype=np.float32)


def corrected_ranks(
    query: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "g d"],
    query_ids: Int[np.ndarray, "q"],
    gallery_ids: Int[np.ndarray, "g"],
    *,
    penalty: Float32[np.ndarray, "g"],
) -> MatchRanks:
    """Rank every match by the cosine less its picture's penalty.

    Raises:
        ValueError: See `ranks.match_ranks`.
    """
    queries = unit_rows(query, name="query")
    pictures = jax.device_put(unit_rows(gallery, name="gallery"))

    def scores(rows: np.ndarray) -> Array:
        return _less(queries[rows], pictures, penalty)

    return score_ranks(scores, query_ids, gallery_ids)


@jax.jit
def _less(
    query: Float32[Array, "b d"],
    gallery: Float32[Array, "g d"],
    penalty: Float32[Array, "g"],
) -> Float32[Array, "b g"]:
    return jnp.dot(query, gallery.T, precision=jax.lax.Precision.HIGHEST) - penalty
