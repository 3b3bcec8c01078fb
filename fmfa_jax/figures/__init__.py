# SPDX-License-Identifier: Apache-2.0
"""Figures of results: ranking sheets, word maps, curves, features."""

from fmfa_jax.figures.contribution import contribution_maps
from fmfa_jax.figures.curves import write_curves
from fmfa_jax.figures.features import write_feature_map, write_similarities
from fmfa_jax.figures.overlays import words_sheet, write_words
from fmfa_jax.figures.page import PAGE, write_page
from fmfa_jax.figures.rankings import (
    Hit,
    Ranking,
    Retrieved,
    draw_rankings,
    draw_spread,
    sheet,
)
from fmfa_jax.figures.report import write_evaluation
from fmfa_jax.figures.words import WordMaps, word_maps

__all__ = [
    "PAGE",
    "Hit",
    "Ranking",
    "Retrieved",
    "WordMaps",
    "contribution_maps",
    "draw_rankings",
    "draw_spread",
    "sheet",
    "word_maps",
    "words_sheet",
    "write_curves",
    "write_evaluation",
    "write_feature_map",
    "write_page",
    "write_similarities",
    "write_words",
]
