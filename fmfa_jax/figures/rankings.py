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
    """Draw one row for each ranking; the width is that of the longest."""
    tiles = max(len(ranking.hits) for ranking in rankings)
    width = max(tiles, 6) * STEP
    captions = [_wrapped(ranking.caption, width) for ranking in rankings]
    heights = [_NOTE + _LINE * (text.count("\n") + 1) for text in captions]
    row = 8 + TILE[1] + _LABELS + _GAP
    size = width + 2 * MARGIN, 2 * MARGIN + sum(heights) + row * len(rankings) - _GAP
    page = Image.new("RGB", size, canvas.PAPER)
    top = MARGIN
    for ranking, caption, height in zip(rankings, captions, heights, strict=True):
        _draw_words(page, top, ranking.note, caption)
        _draw_hits(page, top + height + 8, ranking.hits)
        top += height + row
    return page


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
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def draw(query: int) -> Ranking:
        rank = int(first_match[query])
        return _ranking(split, query, index[query], similarity[query], rank)

    chosen = np.unique(
        np.linspace(0, len(index) - 1, min(count, len(index)), dtype=int)
    )
    files = [folder / f"ranking_{query:06d}.png" for query in chosen]
    for file, query in zip(files, chosen.tolist(), strict=True):
        save(sheet([draw(query)]), file)
    worst = _worst(first_match, split.pair_persons)
    save(sheet([draw(query) for query in worst]), folder / "worst.png")
    return [*files, folder / "worst.png"]


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
    query: int,
    index: Int32[np.ndarray, "k"],
    similarity: Float32[np.ndarray, "k"],
    first_match: int,
) -> Ranking:
    pair = split.pairs[query]
    person = split.images[pair.image].person
    hits = [_hit(split, pair.image, "described", "described picture")]
    for rank, (image, cosine) in enumerate(zip(index, similarity, strict=True), 1):
        verdict = "right" if split.images[image].person == person else "wrong"
        hits.append(_hit(split, int(image), verdict, f"{rank}.  {cosine:.3f}"))
    note = f"query {query}, person {person}: best match at rank {first_match}"
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
