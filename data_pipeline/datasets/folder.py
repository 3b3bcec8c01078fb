# SPDX-License-Identifier: Apache-2.0
"""A user's own pictures: a folder with a captions.jsonl, one JSON object per line.

    {"file": "a/1.jpg", "captions": ["a man in ..", ".."], "person": "anna",
     "split": "train"}

`file` is relative to the folder. `captions` is a list or a single text. `person` is any
text or integer and may be absent; `split` is train, val or test and defaults to train.
Several lines may describe the same file: their captions add up.

People are numbered 0, 1, .. in order of first appearance; the data set's `person_names`
says who is who (1 and "1" are the same person). A picture without a person has
UNKNOWN_PERSON in training; in val and test each such picture is a person of its own,
numbered after the named ones.
"""

import json
import logging
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.datasets.annotations import (
    SPLITS,
    AnnotationError,
    DatasetMissing,
    Entry,
    RawEntry,
    assemble,
    raw_entry,
)
from data_pipeline.records import UNKNOWN_PERSON, PersonDataset

CAPTIONS = "captions.jsonl"
_FIELDS = ("file", "captions", "person", "split")
_log = logging.getLogger(__name__)


def read(root: str) -> PersonDataset:
    """Read the folder `root` without opening the pictures themselves.

    Raises:
        DatasetMissing: If it contains no captions.jsonl.
        AnnotationError: If a line is malformed, or two lines contradict each other.
    """
    folder = Path(root).expanduser().absolute()
    if not (folder / CAPTIONS).is_file():
        raise DatasetMissing(
            f"no folder data set at {root!r}. Looked for\n"
            f"  {folder / CAPTIONS}: missing\n"
            'wanted one JSON object per line: {"file": "a/1.jpg", "captions": ["a man"'
            '], "person": "anna", "split": "train"}; person and split may be absent'
        )
    pictures = _merge(_lines(folder / CAPTIONS))
    names = _names(pictures)
    return assemble(
        "folder",
        str(folder),
        _entries(pictures, names),
        image_folder=str(folder),
        person_names=tuple(names),
    )


@dataclass(frozen=True)
class _Picture:
    """What all lines about one file say together."""

    raw: RawEntry
    file: str
    person: str | None
    split: str
    captions: list[str] = field(default_factory=list)


def _lines(path: Path) -> Iterator[RawEntry]:
    unknown: Counter[str] = Counter()
    empty = True
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(_decoded(file, path), start=1):
            if line.strip():
                raw = _line(path, number, line)
                unknown.update(name for name in raw.values if name not in _FIELDS)
                empty = False
                yield raw
    if empty:
        raise AnnotationError(f"{path}: wanted at least one line, got an empty file")
    if unknown:
        _log.warning("%s: unused fields, with line counts: %s", path, dict(unknown))


def _decoded(file: Iterator[str], path: Path) -> Iterator[str]:
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: wanted UTF-8, got: {error}") from error


def _line(path: Path, number: int, line: str) -> RawEntry:
    place = f"line {number}"
    try:
        return raw_entry(str(path), place, json.loads(line))
    except (json.JSONDecodeError, RecursionError) as error:
        raise AnnotationError(
            f"{path}, {place}: wanted one JSON object, got: {error}"
        ) from error


def _merge(lines: Iterator[RawEntry]) -> list[_Picture]:
    pictures: dict[str, _Picture] = {}
    for raw in lines:
        new = _picture(raw)
        old = pictures.setdefault(posixpath.normpath(new.file), new)
        for name in ("person", "split"):
            if getattr(old, name) != getattr(new, name):
                raise raw.error(
                    name, f"{getattr(old, name)!r} as {old.raw.place} says of this file"
                )
        old.captions.extend(_captions(raw))
    return list(pictures.values())


def _picture(raw: RawEntry) -> _Picture:
    split = raw.values.get("split", "train")
    if split not in SPLITS:
        raise raw.error("split", "train, val or test")
    return _Picture(raw, raw.image_file("file"), _person(raw), split)


def _person(raw: RawEntry) -> str | None:
    value = raw.values.get("person")
    if value is None:
        return None
    if type(value) is int:
        return str(value)
    return raw.text("person")


def _captions(raw: RawEntry) -> tuple[str, ...]:
    if isinstance(raw.values.get("captions"), str):
        return (raw.text("captions"),)
    return raw.texts("captions")


def _names(pictures: list[_Picture]) -> dict[str, int]:
    """Number the named people in order of their first appearance."""
    names: dict[str, int] = {}
    for picture in pictures:
        if picture.person is not None:
            names.setdefault(picture.person, len(names))
    unnamed = sum(picture.person is None for picture in pictures)
    _log.info("folder: %d named people, %d pictures without one", len(names), unnamed)
    return names


def _entries(pictures: list[_Picture], names: dict[str, int]) -> Iterator[Entry]:
    own = len(names)
    for picture in pictures:
        if picture.person is not None:
            person = names[picture.person]
        elif picture.split == "train":
            person = UNKNOWN_PERSON
        else:
            person, own = own, own + 1
        yield Entry(picture.split, picture.file, person, tuple(picture.captions))
