# SPDX-License-Identifier: Apache-2.0
"""Evaluation: features of a split, their retrieval metrics, and the report."""

from fmfa_jax.evaluation.metrics import (
    RetrievalMetrics,
    metrics_from_similarity,
    retrieval_metrics,
    summarize,
)
from fmfa_jax.evaluation.ranks import (
    MatchRanks,
    match_ranks,
    match_ranks_from_similarity,
)

__all__ = [
    "MatchRanks",
    "RetrievalMetrics",
    "match_ranks",
    "match_ranks_from_similarity",
    "metrics_from_similarity",
    "retrieval_metrics",
    "summarize",
]
