# SPDX-License-Identifier: Apache-2.0
"""The common layout of published data sets: a folder with a JSON list and pictures."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.datasets import raw
from data_pipeline.datasets.annotations import (
    Fields,
    Listed,
    assemble,
    entries,
    merge,
    notes,
)
from data_pipeline.datasets.raw import DatasetMissing, RawEntry
from data_pipeline.hints import printable
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
        image_folder: The pictures' folder, inside `folder`; "." if their files are
            relative to that folder itself.
        annotations: The known names of its annotation file, inside `folder`.
        file_field: The field of an entry that holds the picture's file.
        published: The published size of each split.
        verified: "yes", or "no" if the original files have not been seen.
        page: Where the authors explain how to obtain it.
        unsplit: Name of an annotation file that lacks splits, if one is about.
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
    unsplit: str = ""


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
        for name in (*layout.annotations, layout.unsplit)
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
    fields = Fields(layout.file_field, "id")
    listed, repeated = merge(
        [_listed(layout, each) for each in raw.read_json_list(found.annotation)], fields
    )
    known = {e.person: e.person for e in listed if e.person is not None}
    return assemble(
        layout.name,
        str(found.annotation.parent),
        entries(listed, known),
        image_folder=str(found.images),
        notes=notes(listed, repeated, fields),
    )


def _listed(layout: Layout, raw: RawEntry) -> Listed:
    if "split" not in raw.values and layout.unsplit:
        raise raw.error(
            "split",
            f"train, val or test ({layout.unsplit} has no splits, so this may be that "
            f"file renamed: take the {layout.annotations[0]} that the authors send)",
        )
    return Listed(
        raw,
        raw.split("split"),
        raw.image_file(layout.file_field),
        raw.person("id"),
        list(raw.texts("captions")),
    )


def _candidates(layout: Layout, root: str) -> tuple[Path, Path]:
    base = Path(os.path.expanduser(root)).absolute()
    return base / layout.folder, base


def _missing(layout: Layout, root: str) -> str:
    lines = [f"{layout.title} is not under {root!r}. Looked for"]
    for folder in _candidates(layout, root):
        for name in layout.annotations:
            lines.append(_line(folder / name, (folder / name).is_file(), ""))
        if layout.image_folder != ".":
            images = folder / layout.image_folder
            lines.append(_line(images, images.is_dir(), "/"))
        if layout.unsplit and (folder / layout.unsplit).is_file():
            lines.append(
                f"  {printable(str(folder / layout.unsplit))}: found, but this file "
                "does not say which pictures are train, val or test, and the one "
                "wanted does"
            )
    names = " or ".join(layout.annotations)
    pictures = f" and the folder {layout.image_folder}/"
    pictures = pictures if layout.image_folder != "." else " with the pictures it names"
    lines.append(
        f"wanted {names}{pictures} in one of these places. "
        f"The authors send the data set on request, for research only: {layout.page}"
    )
    return "\n".join(lines)


def _line(path: Path, present: bool, ending: str) -> str:
    return f"  {printable(str(path))}{ending}: {'found' if present else 'missing'}"
