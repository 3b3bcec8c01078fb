# SPDX-License-Identifier: Apache-2.0
"""Contact sheets: a caption and the pictures that were found for it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image, ImageDraw

from data_pipeline.images import decode
from data_pipeline.records import Split
from fmfa_jax.figures import canvas

TILE = (104, 208)  # width, height of a thumbnail
STEP = 124  # from one thumbnail to the next
MARGIN = 16
WORST = 8
COLUMNS = 11  # a described picture and ten found ones; more go into rows of ten

_CAPTION_LINES = 4
_LINE = 19
_NOTE = 20
_LABELS = 56
_GAP = 20


@dataclass(frozen=True)
class Hit:
    """One picture of a ranking; right says whether it shows the person asked for.

    verdict: "right" | "wrong" | "described" (the picture that the caption was written
    for, to look at) | "found" (nobody knows: a search without annotation).
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    verdict: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """A caption, a line about it, and its pictures from left to right."""

    caption: str
    note: str
    hits: tuple[Hit, ...]


def sheet(rankings: Sequence[Ranking]) -> Image.Image:
    """Draw the rankings below each other; the width is that of the longest row."""
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


def write_rankings(
    folder: str | Path,
    split: Split,
    index: Int32[np.ndarray, "q k"],
    similarity: Float32[np.ndarray, "q k"],
    first_match: Int32[np.ndarray, "q"],
    *,
    count: int,
) -> list[Path]:
    """Write ranking_000123.png for `count` captions, and worst.png.

    The captions are spread evenly over the split, so that two evaluations of it show
    the same ones. worst.png holds the captions whose person came last, one a person.

    Args:
        folder: where to; made where missing.
        split: captions and pictures that were measured.
        index: gallery index of each caption's nearest pictures, best first.
        similarity: their cosines.
        first_match: the rank of each caption's best match.
        count: how many captions; all where there are fewer.

    Returns:
        The files.
    """
    spread = np.linspace(0, len(index) - 1, min(count, len(index)), dtype=int)
    measured = split, index, similarity, first_match
    files = write_chosen(folder, *measured, queries=np.unique(spread).tolist())
    worst = _worst(first_match, split.pair_persons)
    path = Path(folder) / "worst.png"
    save(sheet([_ranking(*measured, query) for query in worst]), path)
    return [*files, path]


def write_chosen(
    folder: str | Path,
    split: Split,
    index: Int32[np.ndarray, "q k"],
    similarity: Float32[np.ndarray, "q k"],
    first_match: Int32[np.ndarray, "q"],
    *,
    queries: Sequence[int],
) -> list[Path]:
    """Write ranking_000123.png for each of these captions; see `write_rankings`.

    Raises:
        ValueError: the split has no such caption.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for query in queries:
        if not 0 <= query < len(index):
            raise ValueError(
                f"pair {query}: split {split.name!r} has the pairs 0 to "
                f"{len(index) - 1}"
            )
        files.append(folder / f"ranking_{query:06d}.png")
        save(sheet([_ranking(split, index, similarity, first_match, query)]), files[-1])
    return files


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG that appears whole under its name, or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    image.save(temporary, format="PNG")
    os.replace(temporary, path)


def _worst(
    first_match: Int32[np.ndarray, "q"], persons: Int32[np.ndarray, "q"]
) -> list[int]:
    """Return the captions with the latest first match, at most one of each person."""
    order = np.argsort(-first_match, kind="stable")
    _, places = np.unique(persons[order], return_index=True)
    return order[np.sort(places)[:WORST]].tolist()


def _ranking(
    split: Split,
    index: Int32[np.ndarray, "q k"],
    similarity: Float32[np.ndarray, "q k"],
    first_match: Int32[np.ndarray, "q"],
    query: int,
) -> Ranking:
    pair = split.pairs[query]
    person = split.images[pair.image].person
    found = zip(index[query], similarity[query], strict=True)
    hits = [_hit(split, pair.image, "described", "described picture")]
    for rank, (image, cosine) in enumerate(found, 1):
        verdict = "right" if split.images[image].person == person else "wrong"
        hits.append(_hit(split, int(image), verdict, f"{rank}.  {cosine:.3f}"))
    note = f"query {query}, person {person}: best match at rank {first_match[query]}"
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
