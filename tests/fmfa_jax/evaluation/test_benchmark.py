# SPDX-License-Identifier: Apache-2.0
"""The benchmark compares equals: both candidates reach the same figures."""

import pytest

from benchmarks import evaluate
from fmfa_jax.evaluation import RetrievalMetrics


def test_counting_and_sorting_reach_the_same_figures() -> None:
    case = evaluate.Case(60, 110, persons=20, each=4, peer_queries=60)
    mine, other = evaluate.ours(case), evaluate.peer(case)
    names = [n for n in RetrievalMetrics.__annotations__ if n[0] in "rm"]
    assert names == ["r1", "r5", "r10", "mAP", "mINP"]
    for name in names:
        assert mine[name] == pytest.approx(other[name], abs=1e-4)
    assert 0 < mine["r1"] < 100
