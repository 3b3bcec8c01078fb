# SPDX-License-Identifier: Apache-2.0
"""Evaluation: features of a split, their retrieval metrics, and the report."""

from fmfa_jax.evaluation.encode import SplitFeatures, encode_split
from fmfa_jax.evaluation.evaluator import TOP, EvaluatedSplit, evaluate, measure
from fmfa_jax.evaluation.metrics import (
    Evaluation,
    RetrievalMetrics,
    retrieval_metrics,
    summarize,
)
from fmfa_jax.evaluation.nearest import Nearest, nearest
from fmfa_jax.evaluation.ranks import MatchRanks, match_ranks
from fmfa_jax.evaluation.report import (
    report_folder,
    table,
    write_rankings,
    write_report,
)

__all__ = [
    "TOP",
    "EvaluatedSplit",
    "Evaluation",
    "MatchRanks",
    "Nearest",
    "RetrievalMetrics",
    "SplitFeatures",
    "encode_split",
    "evaluate",
    "match_ranks",
    "measure",
    "nearest",
    "report_folder",
    "retrieval_metrics",
    "summarize",
    "table",
    "write_rankings",
    "write_report",
]
