# SPDX-License-Identifier: Apache-2.0
"""Evaluation: features of a split, their retrieval metrics, and the report."""

from fmfa_jax.evaluation.embed import Embeddings, embed
from fmfa_jax.evaluation.evaluator import evaluate, measure
from fmfa_jax.evaluation.metrics import (
    Evaluation,
    RetrievalMetrics,
    metrics_from_similarity,
    retrieval_metrics,
    summarize,
)
from fmfa_jax.evaluation.nearest import Nearest, nearest
from fmfa_jax.evaluation.ranks import (
    MatchRanks,
    match_ranks,
    match_ranks_from_similarity,
)
from fmfa_jax.evaluation.report import table, write_rankings, write_report

__all__ = [
    "Embeddings",
    "Evaluation",
    "MatchRanks",
    "Nearest",
    "RetrievalMetrics",
    "embed",
    "evaluate",
    "match_ranks",
    "match_ranks_from_similarity",
    "measure",
    "metrics_from_similarity",
    "nearest",
    "retrieval_metrics",
    "summarize",
    "table",
    "write_rankings",
    "write_report",
]
