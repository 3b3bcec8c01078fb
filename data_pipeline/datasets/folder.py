# SPDX-License-Identifier: Apache-2.0
"""A user's own pictures: a folder with a captions.jsonl, one JSON object per line.

    {"file": "a/1.jpg", "captions": ["a man in ..", ".."], "person": "anna",
     "split": "train"}

`file` is relative to the folder. `captions` is a list or a single text. `person` is any
text or whole number and may be absent, null or empty; `split` is train, val or test and
defaults to train. Several lines may describe the same file: their captions add up.

People are numbered 0, 1, .. in order of first appearance; the data set's `person_names`
says who is who (1 and "1" are the same person). A picture without a person has
UNKNOWN_PERSON in training; in val and test each such picture is a person of its own,
numbered after the named ones.
"""

import hashlib
import io
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data_pipeline.datasets.annotations import (
    Fields,
    Listed,
    assemble,
    entries,
    merge,
    notes,
)
from data_pipeline.datasets.paths import normalised
from data_pipeline.datasets.raw import (
    AnnotationError,
    DatasetMissing,
    RawEntry,
    read_json_line,
)
from data_pipeline.hints import printable
from data_pipeline.records import PersonDataset
from data_pipeline.regular import read_regular

CAPTIONS = "captions.jsonl"
OPTIONS = ("test_share",)
"""The options that `read` takes."""

_FIELDS = ("file", "captions", "person", "split")
_NAMES = Fields("file", "person")
_log = logging.getLogger(__name__)


def read(root: str, *, test_share: float = 0.0) -> PersonDataset:
    """Read the folder `root` without opening the pictures themselves.

    Args:
        root: The folder.
        test_share: Share of the people to set aside as test, if no line is in val or
            test; see `set_aside`.

    Raises:
        ValueError: If `test_share` is not below 1, or there is a val or test split.
        DatasetMissing: If it contains no captions.jsonl.
        AnnotationError: If a line is malformed, or two lines contradict each other.
    """
    folder = Path(os.path.expanduser(root)).absolute()
    if not (folder / CAPTIONS).is_file():
        raise DatasetMissing(
            f"no folder data set at {root!r}. Looked for\n"
            f"  {printable(str(folder / CAPTIONS))}: missing\n"
            'wanted one JSON object per line: {"file": "a/1.jpg", "captions": ["a man"'
            '], "person": "anna", "split": "train"}; person and split may be absent'
        )
    pictures, repeated = merge(map(_listed, _lines(folder / CAPTIONS)), _NAMES)
    if test_share:
        pictures = set_aside(pictures, test_share)
    names = _names(pictures)
    return assemble(
        "folder",
        str(folder),
        entries(pictures, names),
        image_folder=str(folder),
        person_names=tuple(names),
        notes=notes(pictures, repeated, _NAMES),
    )


def people(root: str | Path) -> dict[str, str]:
    """Who is in the pictures of a folder: normalised file -> name of the person.

    Empty where there is no captions.jsonl; pictures of nobody knows whom are left out.

    Raises:
        AnnotationError: See `read`.
    """
    path = Path(root) / CAPTIONS
    if not path.is_file():
        return {}
    pictures, _ = merge(map(_listed, _lines(path)), _NAMES)
    return {
        normalised(each.file): str(each.person)
        for each in pictures
        if each.person is not None
    }


def set_aside(pictures: list[Listed], share: float) -> list[Listed]:
    """Move all pictures of a share of the people from train to test.

    Who that is depends on nothing but the names: people are ordered by a digest of
    theirs, and the first ones are taken. A picture without a person counts as a person
    with the name of its file.

    Raises:
        ValueError: If the share is not between 0 and 1, or not everything is in train.
    """
    if not 0 < share < 1:
        raise ValueError(f"option test_share={share!r}: wanted more than 0, below 1")
    if others := sorted({picture.split for picture in pictures} - {"train"}):
        raise ValueError(
            f"option test_share={share!r}: wanted a {CAPTIONS} without val and test, "
            f"got lines in {' and '.join(others)}: leave test_share out"
        )
    digests = {_who(p): hashlib.sha256(_who(p).encode()).digest() for p in pictures}
    people = sorted(digests, key=digests.__getitem__)
    test = set(people[: max(1, round(share * len(people)))])
    return [replace(p, split="test") if _who(p) in test else p for p in pictures]


def _who(picture: Listed) -> str:
    known = picture.person is not None
    return f"person {picture.person}" if known else f"file {normalised(picture.file)}"


def _lines(path: Path) -> Iterator[RawEntry]:
    unknown: Counter[str] = Counter()
    empty = True
    for number, line in enumerate(io.StringIO(_text(path), newline=None), start=1):
        if line.strip():
            raw = read_json_line(path, number, line)
            unknown.update(name for name in raw.values if name not in _FIELDS)
            empty = False
            yield raw
    if empty:
        raise AnnotationError(f"{path}: wanted at least one line, got an empty file")
    if unknown:
        counts = printable(str(dict(unknown.most_common(10))))
        _log.warning("%s: unused fields, with line counts: %s", path, counts)


def _text(path: Path) -> str:
    try:
        return read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: wanted UTF-8, got: {error}") from error
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error}") from error


def _listed(raw: RawEntry) -> Listed:
    here = raw.values.get("split") is not None
    return Listed(
        raw,
        raw.split("split") if here else "train",
        raw.image_file("file"),
        raw.person_name("person"),
        list(_captions(raw)),
    )


def _captions(raw: RawEntry) -> tuple[str, ...]:
    if isinstance(raw.values.get("captions"), str):
        return (raw.text("captions"),)
    return raw.texts("captions")


def _names(pictures: list[Listed]) -> dict[str, int]:
    """Number the named people in order of their first appearance."""
    named = dict.fromkeys(p.person for p in pictures if p.person is not None)
    return {name: number for number, name in enumerate(named)}
