# SPDX-License-Identifier: Apache-2.0
"""All figures of an evaluated split."""

from pathlib import Path

from data_pipeline.records import Split
from fmfa_jax.evaluation import TOP, MatchRanks, SplitFeatures, nearest
from fmfa_jax.figures.features import write_feature_map, write_similarities
from fmfa_jax.figures.rankings import Retrieved, draw_spread


def write_evaluation(
    folder: str | Path,
    split: Split,
    features: SplitFeatures,
    ranks: MatchRanks,
    *,
    pictures: int,
) -> None:
    """Draw rankings, the worst failures, similarities and a map of the features.

    Args:
        folder: Destination, created if missing.
        split: Captions and images that were measured.
        features: Their features.
        ranks: Ranks of the captions' matches.
        pictures: Number of captions to draw rankings of; 0 draws nothing at all.
    """
    if pictures < 1:
        return
    top = nearest(features.text, features.image, TOP)
    draw_spread(folder, Retrieved(split, top, ranks.first), count=pictures)
    write_similarities(Path(folder) / "similarities.png", features)
    write_feature_map(Path(folder) / "features.png", features)
