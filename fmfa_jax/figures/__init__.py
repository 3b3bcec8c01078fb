# SPDX-License-Identifier: Apache-2.0
"""Pictures of results: ranking sheets, curves, similarities, maps of features."""

from fmfa_jax.figures.curves import write_curves
from fmfa_jax.figures.features import write_feature_map, write_similarities
from fmfa_jax.figures.rankings import Hit, Ranking, sheet, write_rankings

__all__ = [
    "Hit",
    "Ranking",
    "sheet",
    "write_curves",
    "write_feature_map",
    "write_rankings",
    "write_similarities",
]
