# SPDX-License-Identifier: Apache-2.0
"""The common layout of published data sets: a folder with a JSON list and pictures."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.datasets.annotations import (
    DatasetMissing,
    Entry,
    RawEntry,
    assemble,
    read_json_list,
)
from data_pipeline.records import PersonDataset

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counts:
    """The number of people, pictures and captions in a split."""

    ids: int
    images: int
    captions: int


@dataclass(frozen=True)
class Layout:
    """How a published data set is laid out on disk.

    Attributes:
        name: The reader's name.
        title: The data set's name in papers.
        folder: Its folder under the root (the root may also be that folder itself).
        image_folder: The pictures' folder, inside `folder`.
        annotations: The known names of its annotation file, inside `folder`.
        file_field: The field of an entry that holds the picture's file.
        published: The published size of each split.
        verified: "yes", or "no" if the original files have not been seen.
        page: Where the authors explain how to obtain it.
    """

    name: str
    title: str
    folder: str
    image_folder: str
    annotations: tuple[str, ...]
    file_field: str
    published: Mapping[str, Counts]
    verified: str
    page: str


@dataclass(frozen=True)
class Found:
    """The location of a data set: its annotation file and its image folder."""

    annotation: Path
    images: Path


def find(layout: Layout, root: str) -> Found:
    """Look for a data set in ROOT/folder and in ROOT itself.

    Raises:
        DatasetMissing: If it is in neither; the message lists the places searched.
    """
    for folder in _candidates(layout, root):
        present = [n for n in layout.annotations if (folder / n).is_file()]
        images = folder / layout.image_folder
        if not present or not images.is_dir():
            continue
        if len(present) > 1:
            _log.warning(
                "%s holds %s: reading the first", folder, " and ".join(present)
            )
        return Found(folder / present[0], images)
    raise DatasetMissing(_missing(layout, root))


def traces(layout: Layout, root: str) -> bool:
    """Return whether any part of a data set that bears its name is under the root."""
    candidates = _candidates(layout, root)
    return candidates[0].is_dir() or any(
        (folder / name).is_file()
        for folder in candidates
        for name in layout.annotations
    )


def read_layout(layout: Layout, root: str) -> PersonDataset:
    """Read the annotation file without opening the pictures themselves.

    Args:
        layout: The data set's layout.
        root: The folder that contains the data set's folder, or that folder itself.

    Raises:
        DatasetMissing: If the files are not there.
        AnnotationError: If the annotation file is malformed.
    """
    found = find(layout, root)
    entries = [_entry(layout, raw) for raw in read_json_list(found.annotation)]
    return assemble(
        layout.name,
        str(found.annotation.parent),
        entries,
        image_folder=str(found.images),
    )


def _entry(layout: Layout, raw: RawEntry) -> Entry:
    split = raw.text("split")
    return Entry(
        # As in the official readers, anything that is neither train nor test is val.
        split=split if split in ("train", "test") else "val",
        file=raw.image_file(layout.file_field),
        person=raw.person("id"),
        captions=raw.texts("captions"),
    )


def _candidates(layout: Layout, root: str) -> tuple[Path, Path]:
    base = Path(root).expanduser().absolute()
    return base / layout.folder, base


def _missing(layout: Layout, root: str) -> str:
    lines = [f"{layout.title} is not under {root!r}. Looked for"]
    for folder in _candidates(layout, root):
        for name in layout.annotations:
            lines.append(_line(folder / name, (folder / name).is_file(), ""))
        images = folder / layout.image_folder
        lines.append(_line(images, images.is_dir(), "/"))
    names = " or ".join(layout.annotations)
    lines.append(
        f"wanted {names} and the folder {layout.image_folder}/ in one of these places. "
        f"The authors send the data set on request, for research only: {layout.page}"
    )
    return "\n".join(lines)


def _line(path: Path, present: bool, ending: str) -> str:
    return f"  {path}{ending}: {'found' if present else 'missing'}"
