# SPDX-License-Identifier: Apache-2.0
"""Pictures of results: ranking sheets, word maps, curves, features."""

from fmfa_jax.figures.curves import write_curves
from fmfa_jax.figures.features import write_feature_map, write_similarities
from fmfa_jax.figures.overlays import words_sheet, write_words
from fmfa_jax.figures.rankings import (
    Hit,
    Ranking,
    sheet,
    write_chosen,
    write_rankings,
)
from fmfa_jax.figures.words import WordMaps, word_maps

__all__ = [
    "Hit",
    "Ranking",
    "WordMaps",
    "sheet",
    "word_maps",
    "words_sheet",
    "write_chosen",
    "write_curves",
    "write_feature_map",
    "write_rankings",
    "write_similarities",
    "write_words",
]
