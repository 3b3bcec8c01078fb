# SPDX-License-Identifier: Apache-2.0
"""What the field reports: R@1, R@5, R@10, mAP and mINP, in percent."""

from dataclasses import asdict, dataclass

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from fmfa_jax.evaluation.ranks import (
    GALLERY_BLOCK,
    MatchRanks,
    match_ranks,
    match_ranks_from_similarity,
)


@dataclass(frozen=True)
class RetrievalMetrics:
    """One direction of retrieval, in percent.

    r1, r5, r10: queries with a match among the first k. mAP: mean over queries of the
    mean precision at each match. mINP: mean of matches / rank of the last match.
    """

    r1: float
    r5: float
    r10: float
    mAP: float
    mINP: float
    queries: int
    gallery: int

    def as_dict(self) -> dict[str, float | int]:
        """The numbers by name, ready for JSON and for the log."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """Both directions: captions look for pictures, and pictures for captions."""

    t2i: RetrievalMetrics
    i2t: RetrievalMetrics


def retrieval_metrics(
    query: Float[np.ndarray | Array, "q d"],
    gallery: Float[np.ndarray | Array, "g d"],
    query_ids: Int[np.ndarray, "q"],
    gallery_ids: Int[np.ndarray, "g"],
    *,
    query_block: int | None = None,
    gallery_block: int = GALLERY_BLOCK,
    mesh: Mesh | None = None,
) -> RetrievalMetrics:
    """Measure retrieval by cosine; arguments and errors as `ranks.match_ranks`.

    Ties are resolved against the model: where a wrong item is exactly as similar as
    a right one, the wrong one counts as ahead.
    """
    ranks = match_ranks(
        query,
        gallery,
        query_ids,
        gallery_ids,
        query_block=query_block,
        gallery_block=gallery_block,
        mesh=mesh,
    )
    return summarize(ranks)


def metrics_from_similarity(
    similarity: Float[np.ndarray | Array, "q g"],
    query_ids: Int[np.ndarray, "q"],
    gallery_ids: Int[np.ndarray, "g"],
) -> RetrievalMetrics:
    """Measure retrieval on a given similarity matrix (greater is nearer)."""
    return summarize(match_ranks_from_similarity(similarity, query_ids, gallery_ids))


def summarize(ranks: MatchRanks) -> RetrievalMetrics:
    """Average the ranks of all queries' matches into the five figures."""
    first = ranks.first
    r1, r5, r10 = (100.0 * float(np.mean(first <= k)) for k in (1, 5, 10))
    return RetrievalMetrics(
        r1=r1,
        r5=r5,
        r10=r10,
        mAP=100.0 * float(np.mean(ranks.average_precision)),
        mINP=100.0 * float(np.mean(ranks.inverse_penalty)),
        queries=ranks.queries,
        gallery=ranks.gallery,
    )
