# SPDX-License-Identifier: Apache-2.0
"""Plots of the features: similarity histograms, and a map of a few people."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmfa_jax import plots
from fmfa_jax.evaluation import SplitFeatures
from fmfa_jax.evaluation.blocks import unit_rows

_BINS = 80
_QUERIES = 2000
_ROWS_AT_ONCE = 256


def similarity_histograms(
    features: SplitFeatures, *, queries: int = _QUERIES
) -> tuple[
    Float[np.ndarray, "edges"], Int[np.ndarray, "bins"], Int[np.ndarray, "bins"]
]:
    """Count the cosines of matching and of other pairs in 80 bins from -1 to 1.

    Returns:
        Edges, matching pairs and other pairs, counted over at most `queries` evenly
        spread captions, each with the whole gallery.
    """
    captions = len(features.text)
    rows = np.linspace(0, captions - 1, min(queries, captions), dtype=int)
    edges = np.linspace(-1, 1, _BINS + 1)
    counts = np.zeros((2, _BINS), np.int64)
    gallery = unit_rows(features.image)
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[first : first + _ROWS_AT_ONCE]
        cosines = np.clip(unit_rows(features.text[part]) @ gallery.T, -1, 1)
        match = features.text_person[part, None] == features.image_person[None]
        for kind, values in enumerate((cosines[match], cosines[~match])):
            counts[kind] += np.histogram(values, bins=edges)[0]
    return edges, counts[0], counts[1]


def write_similarities(path: str | Path, features: SplitFeatures) -> Path:
    """Plot how similar captions are to images of their person and of others."""
    edges, match, other = similarity_histograms(features)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    styles = (
        {"facecolor": "#bbbbbb", "edgecolor": "#555555"},
        {"facecolor": "none", "edgecolor": "#c8102e", "hatch": "////"},
    )
    for counts, name, style in zip(
        (other, match), ("other pairs", "matching pairs"), styles, strict=True
    ):
        total = max(int(counts.sum()), 1)
        label = f"{name} ({total})"
        axes.stairs(counts / total, edges, fill=True, label=label, **style)
    used = np.flatnonzero(match + other)
    axes.set_xlim(edges[max(used[0] - 1, 0)], edges[min(used[-1] + 2, _BINS)])
    axes.set_xlabel("cosine of caption and picture")
    axes.set_ylabel("share of the pairs")
    axes.legend()
    return plots.save(figure, path)


def write_feature_map(
    path: str | Path, features: SplitFeatures, *, persons: int = 12, each: int = 20
) -> Path:
    """Draw images and captions of a few people as points in the plane (t-SNE).

    Each person has a colour AND a marker; captions are hollow. The mean of each
    modality is subtracted first. Otherwise the map would mainly show the constant gap
    between captions and images, which no ranking depends on.

    Args:
        path: The PNG.
        features: Features of a split.
        persons: Number of people, spread evenly over those with captions and images.
        each: Maximum number of images, and of captions, per person.
    """
    text_person, image_person = features.text_person, features.image_person
    both = np.intersect1d(text_person, image_person)
    chosen = both[np.linspace(0, len(both) - 1, min(persons, len(both)), dtype=int)]
    rows = [_rows(ids, chosen, each) for ids in (image_person, text_person)]
    units = [unit_rows(x) for x in (features.image, features.text)]
    centred = [unit_rows(x - x.mean(axis=0)) for x in units]
    points = np.concatenate([x[r] for x, r in zip(centred, rows, strict=True)])
    places = _plane(points)
    split = len(rows[0])
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    for number, person in enumerate(chosen):
        pictures = places[:split][image_person[rows[0]] == person]
        captions = places[split:][text_person[rows[1]] == person]
        _scatter(axes, pictures, captions, number=number, person=int(person))
    axes.set_title("t-SNE of the features; filled: pictures, hollow: captions", size=10)
    axes.legend(title="person", loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_xticks([])
    axes.set_yticks([])
    return plots.save(figure, path)


def _scatter(
    axes: Axes,
    pictures: Float[np.ndarray, "n 2"],
    captions: Float[np.ndarray, "m 2"],
    *,
    number: int,
    person: int,
) -> None:
    colour = plots.COLOURS[number % len(plots.COLOURS)]
    style = {
        "marker": plots.MARKERS[number % len(plots.MARKERS)],
        "edgecolors": colour,
        "s": 36,
    }
    axes.scatter(*pictures.T, facecolors=colour, label=str(person), **style)
    axes.scatter(*captions.T, facecolors="none", **style)


def _plane(points: Float32[np.ndarray, "n d"]) -> Float[np.ndarray, "n 2"]:
    """Lay out points in the plane, deterministically."""
    # Imported here because they are slow to import and nothing else needs them.
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(points) < 4:  # too few for neighbourhoods
        return np.stack([np.arange(len(points)), np.zeros(len(points))], axis=1)
    perplexity = min(30.0, (len(points) - 1) / 3)
    layout = TSNE(perplexity=perplexity, init="random", random_state=0)
    # One thread is faster for so few points, 100 times so on a busy machine.
    with threadpool_limits(1):
        return layout.fit_transform(points)


def _rows(
    ids: Int[np.ndarray, "n"], persons: Int[np.ndarray, "k"], each: int
) -> Int[np.ndarray, "m"]:
    return np.concatenate([np.flatnonzero(ids == person)[:each] for person in persons])
