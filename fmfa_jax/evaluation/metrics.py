# SPDX-License-Identifier: Apache-2.0
"""The usual retrieval metrics: R@1, R@5, R@10, their sum, mAP and mINP, in percent."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from fmfa_jax.evaluation.ranks import MatchRanks, match_ranks


@dataclass(frozen=True)
class RetrievalMetrics:
    """One direction of retrieval, in percent.

    Attributes:
        r1: Queries with a match in first place.
        r5: Queries with a match among the first 5.
        r10: Queries with a match among the first 10.
        mAP: Mean over queries of the mean precision at each match.
        mINP: Mean over queries of matches / rank of the last match.
        queries: Number of queries.
        gallery: Number of gallery items.
    """

    r1: float
    r5: float
    r10: float
    mAP: float
    mINP: float
    queries: int
    gallery: int

    @property
    def rSum(self) -> float:
        """R1 + R5 + R10, at most 300."""
        return self.r1 + self.r5 + self.r10

    def as_dict(self) -> dict[str, float | int]:
        """Return the numbers by name, for JSON and the log."""
        return asdict(self) | {"rSum": self.rSum}


@dataclass(frozen=True)
class Evaluation:
    """Both directions: captions retrieve images, and images retrieve captions.

    Attributes:
        t2i: Text to image.
        i2t: Image to text.
        parts: Text to image by parts of the features alone, by name.
    """

    t2i: RetrievalMetrics
    i2t: RetrievalMetrics
    parts: Mapping[str, RetrievalMetrics] = field(default_factory=dict)


def retrieval_metrics(
    query: Float[np.ndarray | Array, "q d"],
    gallery: Float[np.ndarray | Array, "g d"],
    query_ids: Int[np.ndarray, "q"],
    gallery_ids: Int[np.ndarray, "g"],
    **options: Any,
) -> RetrievalMetrics:
    """Measure retrieval by cosine; see `ranks.match_ranks` for arguments and errors.

    Ties are resolved against the model: a wrong item exactly as similar as a right one
    counts as ahead of it.
    """
    return summarize(match_ranks(query, gallery, query_ids, gallery_ids, **options))


def summarize(ranks: MatchRanks) -> RetrievalMetrics:
    """Average the match ranks of all queries into the five metrics."""
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
