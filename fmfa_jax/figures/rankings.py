# SPDX-License-Identifier: Apache-2.0
"""Contact sheets: a caption and the images retrieved for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image, ImageDraw

from data_pipeline.images import decode
from data_pipeline.records import Split
from fmfa_jax.evaluation import Nearest
from fmfa_jax.figures import canvas
from fmfa_jax.files import replacing

TILE = (104, 208)  # width, height of a thumbnail
STEP = 124  # from one thumbnail to the next
MARGIN = 16
WORST = 8
COLUMNS = 11  # the described image and ten retrieved; more wrap into rows of ten

_CAPTION_LINES = 4
_LINE = 19
_NOTE = 20
_LABELS = 56
_GAP = 20


@dataclass(frozen=True)
class Hit:
    """One image of a ranking.

    Attributes:
        pixels: The image.
        verdict: "right" or "wrong" person; "described", the image that the caption was
            written for; or "found", by a search without annotations.
        labels: Lines of text below the image.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    verdict: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """A caption, a line about it, and its images from left to right."""

    caption: str
    note: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Retrieved:
    """What each caption of a split retrieved.

    Attributes:
        split: Captions and images.
        nearest: Nearest images of each caption.
        first_match: Rank of each caption's best match.
    """

    split: Split
    nearest: Nearest
    first_match: Int32[np.ndarray, "q"]


def sheet(rankings: Sequence[Ranking]) -> Image.Image:
    """Draw rankings below each other, as wide as the longest row."""
    rows = [_rows(ranking.hits) for ranking in rankings]
    width = max(6, *(len(row) for each in rows for row in each)) * STEP
    captions = [_wrapped(ranking.caption, width) for ranking in rankings]
    heights = [_NOTE + _LINE * (text.count("\n") + 1) for text in captions]
    tall = 8 + TILE[1] + _LABELS
    below = sum(tall * len(each) + _GAP for each in rows) - _GAP
    size = width + 2 * MARGIN, 2 * MARGIN + sum(heights) + below
    page = Image.new("RGB", size, canvas.PAPER)
    top = MARGIN
    for ranking, each, caption, height in zip(
        rankings, rows, captions, heights, strict=True
    ):
        _draw_words(page, top, ranking.note, caption)
        top += height
        for row in each:
            _draw_hits(page, top + 8, row)
            top += tall
        top += _GAP
    return page


def _rows(hits: Sequence[Hit]) -> list[Sequence[Hit]]:
    columns = COLUMNS if len(hits) <= COLUMNS else 10
    return [hits[first : first + columns] for first in range(0, len(hits), columns)]


def draw_rankings(
    folder: str | Path, retrieved: Retrieved, *, queries: Sequence[int]
) -> list[Path]:
    """Write ranking_000123.png for each of these captions.

    Args:
        folder: Destination, created if missing.
        retrieved: What the captions retrieved.
        queries: Indices of captions.

    Returns:
        The files written.

    Raises:
        ValueError: The split has no such caption.
    """
    split, files = retrieved.split, []
    for query in queries:
        if not 0 <= query < len(split.pairs):
            raise ValueError(
                f"pair {query}: split {split.name!r} has the pairs 0 to "
                f"{len(split.pairs) - 1}"
            )
        page = sheet([_ranking(retrieved, query)])
        files.append(save(page, Path(folder) / f"ranking_{query:06d}.png"))
    return files


def draw_spread(folder: str | Path, retrieved: Retrieved, *, count: int) -> list[Path]:
    """Write ranking_000123.png for `count` captions, and worst.png.

    The captions are spread evenly over the split, so that two evaluations of it show
    the same ones. worst.png has the captions with the latest first match, one per
    person.

    Args:
        folder: Destination, created if missing.
        retrieved: What the captions retrieved.
        count: Number of captions, or all if there are fewer.

    Returns:
        The files written.
    """
    captions = len(retrieved.split.pairs)
    spread = np.linspace(0, captions - 1, min(count, captions), dtype=int)
    files = draw_rankings(folder, retrieved, queries=np.unique(spread).tolist())
    worst = _worst(retrieved.first_match, retrieved.split.pair_persons)
    page = sheet([_ranking(retrieved, query) for query in worst])
    return [*files, save(page, Path(folder) / "worst.png")]


def save(image: Image.Image, path: str | Path) -> Path:
    """Write a picture in the format of its name, else PNG; see `files.replacing`."""
    kinds = Image.registered_extensions()
    with replacing(path) as draft:
        image.save(draft, format=kinds.get(Path(path).suffix.lower(), "PNG"))
    return Path(path)


def _worst(
    first_match: Int32[np.ndarray, "q"], persons: Int32[np.ndarray, "q"]
) -> list[int]:
    """Return the captions with the latest first match, at most one per person."""
    order = np.argsort(-first_match, kind="stable")
    _, places = np.unique(persons[order], return_index=True)
    return order[np.sort(places)[:WORST]].tolist()


def _ranking(retrieved: Retrieved, query: int) -> Ranking:
    split, nearest = retrieved.split, retrieved.nearest
    pair = split.pairs[query]
    person = split.images[pair.image].person
    found = zip(nearest.index[query], nearest.similarity[query], strict=True)
    hits = [_hit(split, pair.image, "described", "described picture")]
    for rank, (image, cosine) in enumerate(found, 1):
        verdict = "right" if split.images[image].person == person else "wrong"
        hits.append(_hit(split, int(image), verdict, f"{rank}.  {cosine:.3f}"))
    rank = retrieved.first_match[query]
    note = f"query {query}, person {person}: best match at rank {rank}"
    return Ranking(pair.caption, note, tuple(hits))


def _hit(split: Split, image: int, verdict: str, label: str) -> Hit:
    picture = split.images[image]
    labels = (label, picture.file, f"person {picture.person}")
    return Hit(decode(split.read(image)), verdict, labels)


def _wrapped(caption: str, width: int) -> str:
    return canvas.wrap(f"“{caption}”", canvas.font(15), width, _CAPTION_LINES)


def _draw_words(page: Image.Image, top: int, note: str, caption: str) -> None:
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, top), note, canvas.FAINT, canvas.font(12))
    draw.text((MARGIN, top + _NOTE), caption, canvas.INK, canvas.font(15))


def _draw_hits(page: Image.Image, top: int, hits: Sequence[Hit]) -> None:
    colours = {"right": canvas.RIGHT, "wrong": canvas.WRONG}
    for column, hit in enumerate(hits):
        canvas.place_tile(
            page,
            (MARGIN + column * STEP, top),
            canvas.thumbnail(hit.pixels, TILE),
            colour=colours.get(hit.verdict, canvas.NEUTRAL),
            labels=hit.labels,
        )
