# SPDX-License-Identifier: Apache-2.0
"""Validated reading of annotation files: each error names file, entry and field."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from data_pipeline.records import (
    ImageSource,
    Pair,
    PersonDataset,
    Picture,
    Split,
)

SPLITS = ("train", "val", "test")
_LARGEST_PERSON = 2**31 - 1  # ids travel as int32


class DatasetMissing(FileNotFoundError):
    """Raised when a data set is not where it was expected."""


class AnnotationError(ValueError):
    """Raised when an annotation file is malformed."""


@dataclass(frozen=True)
class Entry:
    """One picture of an annotation file, in the form common to all readers."""

    split: str
    file: str
    person: int
    captions: tuple[str, ...]


@dataclass(frozen=True)
class RawEntry:
    """One unchecked entry; `place` is its number in `file`, such as "entry 7"."""

    file: str
    place: str
    values: Mapping[str, object] = field(repr=False)

    def error(self, name: str, wanted: str) -> AnnotationError:
        """Return the error for a field that is not what was wanted."""
        came = _shown(self.values[name]) if name in self.values else "no such field"
        return AnnotationError(
            f"{self.file}, {self.place}, field {name!r}: wanted {wanted}, got {came}"
        )

    def text(self, name: str) -> str:
        """Return a field that must be a text."""
        value = self.values.get(name)
        if not isinstance(value, str) or not _is_unicode(value):
            raise self.error(name, "a text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a field that must be a list of texts; the list may be empty."""
        value = self.values.get(name)
        if not isinstance(value, list) or not all(
            isinstance(text, str) and _is_unicode(text) for text in value
        ):
            raise self.error(name, "a list of texts")
        return tuple(value)

    def person(self, name: str) -> int:
        """Return a field that must be a person's id: an integer, or its digits."""
        value = self.values.get(name)
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value) if len(value) < 12 else value
        if type(value) is not int or not 0 <= value <= _LARGEST_PERSON:
            raise self.error(name, f"a whole number from 0 to {_LARGEST_PERSON}")
        return value

    def image_file(self, name: str) -> str:
        """Return a field that must be a path inside the image folder.

        Absolute paths and paths with ".." are rejected: an annotation file from
        elsewhere must not make the program read other files. Links that the user placed
        inside the image folder are followed.
        """
        value = self.text(name)
        parts = PurePosixPath(value).parts
        if not parts or value.startswith("/") or ".." in parts or "\0" in value:
            raise self.error(name, "a relative path inside the image folder, no '..'")
        return value


def read_json_list(path: Path) -> list[RawEntry]:
    """Read an annotation file that consists of one JSON list of objects.

    Raises:
        AnnotationError: If it is not JSON, not a list of objects, or empty.
    """
    try:
        entries = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: wanted a JSON file, got: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise AnnotationError(
            f"{path}: wanted a JSON list with at least one entry, got {_shown(entries)}"
        )
    return [
        raw_entry(str(path), f"entry {i}", values) for i, values in enumerate(entries)
    ]


def raw_entry(file: str, place: str, values: object) -> RawEntry:
    """Return `values` as an entry.

    Raises:
        AnnotationError: If it is not a JSON object.
    """
    if not isinstance(values, dict):
        raise AnnotationError(
            f"{file}, {place}: wanted an object with fields, got {_shown(values)}"
        )
    return RawEntry(file, place, values)


def assemble(
    name: str,
    root: str,
    entries: Iterable[Entry],
    *,
    image_folder: str,
    person_names: tuple[str, ...] = (),
    sources: Mapping[str, ImageSource] | None = None,
) -> PersonDataset:
    """Sort the entries into splits, each in the order of the annotation.

    Args:
        name: The reader's name.
        root: The folder to name in messages.
        entries: The pictures of all splits.
        image_folder: Folder that the entries' files are relative to.
        person_names: See PersonDataset.
        sources: What reads each split's pictures by index; None if they are files.
    """
    sources = sources or {}
    by_split: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for entry in entries:
        by_split[entry.split].append(entry)
    train, val, test = (
        _split(split, by_split[split], os.path.abspath(image_folder), sources)
        for split in SPLITS
    )
    return PersonDataset(
        name, root, train, val if val.images else None, test, person_names
    )


def _split(
    name: str,
    entries: list[Entry],
    image_folder: str,
    sources: Mapping[str, ImageSource],
) -> Split:
    images = tuple(
        Picture(e.file, os.path.join(image_folder, e.file), e.person) for e in entries
    )
    pairs = tuple(
        Pair(image, caption)
        for image, entry in enumerate(entries)
        for caption in entry.captions
    )
    return Split(name, images, pairs, sources.get(name))


def entries_of(dataset: PersonDataset) -> list[Entry]:
    """Return the entries from which `assemble` made a data set, split by split."""
    entries = []
    for split in dataset.splits:
        captions: list[list[str]] = [[] for _ in split.images]
        for pair in split.pairs:
            captions[pair.image].append(pair.caption)
        entries += [
            Entry(split.name, image.file, image.person, tuple(texts))
            for image, texts in zip(split.images, captions, strict=True)
        ]
    return entries


def _is_unicode(text: str) -> bool:
    """Return whether a text can be encoded: JSON may escape lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    text = ascii(value)
    text = text if len(text) <= 80 else text[:77] + "..."
    return f"{type(value).__name__} {text}"
