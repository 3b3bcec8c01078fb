# SPDX-License-Identifier: Apache-2.0
"""A contact sheet of a population: pictures with one caption under each."""

import json
import os
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data_pipeline.synthetic.population import DATASET

_COLUMNS, _ROWS = 6, 2
_CELL_WIDTH, _GAP = 150, 8
_LINE, _LETTERS = 11, 29


def write_sheet(
    population: str | os.PathLike[str], file: str | os.PathLike[str]
) -> Path:
    """Draw two rows of six pictures, one row per style if the population has both.

    Args:
        population: Folder written by `write_population`.
        file: PNG file to write.
    """
    root = Path(population) / DATASET
    entries = json.loads((root / "reid_raw.json").read_text(encoding="utf-8"))
    chosen = _choose(entries)
    cells = [_cell(root / "imgs" / entry["file_path"], entry) for entry in chosen]
    height = max(cell.height for cell in cells)
    wide, tall = _CELL_WIDTH + _GAP, height + _GAP
    sheet = Image.new("RGB", (_COLUMNS * wide + _GAP, _ROWS * tall + _GAP), "white")
    for place, cell in enumerate(cells):
        row, column = divmod(place, _COLUMNS)
        sheet.paste(cell, (_GAP + column * wide, _GAP + row * tall))
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(255).save(path, "PNG", optimize=True)
    return path


def _choose(entries: list[dict]) -> list[dict]:
    """Choose one picture each of different people, equally many of each style."""
    wanted = _COLUMNS * _ROWS
    styles: dict[str, dict[int, dict]] = {}
    for entry in entries:
        style = entry["file_path"].split("_")[0]
        styles.setdefault(style, {}).setdefault(entry["id"], entry)
    each = wanted // len(styles)
    chosen = []
    for row, (_, people) in enumerate(sorted(styles.items(), reverse=True)):
        # Neighbours belong to one family and look alike: take people from all over.
        spread = list(people.values())[row :: max(1, len(people) // each)]
        chosen += spread[:each]
    return chosen


def _cell(picture: Path, entry: dict) -> Image.Image:
    """Return a picture above the lines of its first caption."""
    with Image.open(picture) as image:
        lines = textwrap.wrap(entry["captions"][0], _LETTERS)
        height = image.height + 4 + _LINE * len(lines)
        cell = Image.new("RGB", (_CELL_WIDTH, height), "white")
        cell.paste(image, ((_CELL_WIDTH - image.width) // 2, 0))
        top = image.height + 4
    draw = ImageDraw.Draw(cell)
    for number, line in enumerate(lines):
        font = ImageFont.load_default(9)
        draw.text((0, top + number * _LINE), line, fill="black", font=font)
    return cell
