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
_CAPTION = 20 + 19 * _CAPTION_LINES
_LABELS = 52
_ROW = _CAPTION + TILE[1] + _LABELS + 20


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
    size = 2 * MARGIN + max(tiles, 6) * STEP, 2 * MARGIN + len(rankings) * _ROW
    page = Image.new("RGB", size, canvas.PAPER)
    for number, ranking in enumerate(rankings):
        _draw_row(page, MARGIN + number * _ROW, ranking)
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
    the same ones. worst.png holds the captions whose person came last.

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
    worst = np.argsort(-first_match, kind="stable")[:WORST]
    save(sheet([draw(query) for query in worst.tolist()]), folder / "worst.png")
    return [*files, folder / "worst.png"]


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG that appears whole under its name, or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    image.save(temporary, format="PNG", optimize=True)
    os.replace(temporary, path)


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


def _draw_row(page: Image.Image, top: int, ranking: Ranking) -> None:
    draw = ImageDraw.Draw(page)
    width = page.width - 2 * MARGIN
    note, face = canvas.font(12), canvas.font(15)
    draw.text((MARGIN, top), ranking.note, canvas.FAINT, note)
    caption = canvas.wrap(f"“{ranking.caption}”", face, width, _CAPTION_LINES)
    draw.text((MARGIN, top + 18), caption, canvas.INK, face)
    colours = {"right": canvas.RIGHT, "wrong": canvas.WRONG}
    for column, hit in enumerate(ranking.hits):
        canvas.place_tile(
            page,
            (MARGIN + column * STEP, top + _CAPTION),
            canvas.thumbnail(hit.pixels, TILE),
            colour=colours.get(hit.verdict, canvas.NEUTRAL),
            labels=hit.labels,
        )
