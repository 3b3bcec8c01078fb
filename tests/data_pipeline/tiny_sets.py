# SPDX-License-Identifier: Apache-2.0
"""Tiny generated data sets in every layout, for the readers' tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.datasets.layout import Layout


def tiny_entries(layout: Layout) -> list[dict[str, Any]]:
    """Return eight pictures, two of each person, in the splits the layout has."""
    splits = ["train", "train", "val" if "val" in layout.published else "test", "test"]
    return [
        {
            "split": splits[number // 2],
            "id": number // 2 + 1,
            layout.file_field: f"cam_{number % 2}/{number:03d}.jpg",
            "captions": [f"A man in grün, number {number}.", "He walks."][
                : 1 + number % 2
            ],
        }
        for number in range(8)
    ]


def write_picture(path: Path, *, seed: int = 0) -> None:
    """Write a picture of 6 x 12 pixels of noise in the format given by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (12, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def write_layout(
    root: Path, layout: Layout, entries: list[dict[str, Any]] | None = None
) -> Path:
    """Write a data set under the root and return its own folder."""
    entries = tiny_entries(layout) if entries is None else entries
    folder = root / layout.folder
    for number, entry in enumerate(entries):
        write_picture(
            folder / layout.image_folder / entry[layout.file_field], seed=number
        )
    (folder / layout.annotations[0]).write_text(json.dumps(entries), "utf-8")
    return folder


def write_lines(folder: Path, lines: list[dict[str, Any]]) -> Path:
    """Write a folder data set: captions.jsonl and the pictures it names."""
    for number, line in enumerate(lines):
        write_picture(folder / line["file"], seed=number)
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "captions.jsonl").write_text(text, "utf-8")
    return folder
