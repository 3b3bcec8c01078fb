# SPDX-License-Identifier: Apache-2.0
"""From the entries of an annotation to the splits of a data set."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from data_pipeline.datasets.paths import ImageFolder, is_respelled, normalised
from data_pipeline.datasets.raw import (
    LARGEST_PERSON,
    SPLITS,
    AnnotationError,
    RawEntry,
)
from data_pipeline.findings import Finding, examples
from data_pipeline.records import (
    UNKNOWN_PERSON,
    ImageSource,
    Pair,
    PersonDataset,
    Picture,
    Split,
)


@dataclass(frozen=True)
class Entry:
    """One picture of an annotation file, in the form common to all readers."""

    split: str
    file: str
    person: int
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Fields:
    """What the fields of an entry are called in an annotation."""

    file: str
    person: str
    split: str = "split"


@dataclass(frozen=True)
class Listed:
    """What an annotation says about one picture, in normalised words.

    Attributes:
        raw: The first entry about it.
        split: "train", "val" or "test".
        file: Path as in the annotation.
        person: Name or number; None if unknown.
        captions: The captions of all entries about it.
    """

    raw: RawEntry
    split: str
    file: str
    person: str | int | None
    captions: list[str] = field(default_factory=list)


def merge(listed: Iterable[Listed], fields: Fields) -> tuple[list[Listed], int]:
    """Return each picture once, with the captions of all entries about it.

    Args:
        listed: The entries, in order.
        fields: What their fields are called.

    Returns:
        The pictures in order of their first entry, and the number of entries that were
        about a picture already listed.

    Raises:
        AnnotationError: If two entries about a picture differ in person or split.
    """
    pictures: dict[str, Listed] = {}
    repeated = 0
    for new in listed:
        old = pictures.setdefault(normalised(new.file), new)
        if old is new:
            continue
        for attribute, name in (("person", fields.person), ("split", fields.split)):
            if (said := getattr(old, attribute)) != getattr(new, attribute):
                wanted = f"{said!r} as {old.raw.place} says of this file"
                raise new.raw.error(name, wanted)
        old.captions.extend(new.captions)
        repeated += 1
    return list(pictures.values()), repeated


def notes(listed: Sequence[Listed], repeated: int, fields: Fields) -> list[Finding]:
    """Return what reading put in order or could not know, each kind with its count.

    Args:
        listed: The pictures, each once.
        repeated: Number of entries that `merge` took into others.
        fields: What the fields of an entry are called.
    """
    splits = [str(e.raw.values.get(fields.split, e.split)) for e in listed]
    splits = [s for s, e in zip(splits, listed, strict=True) if s != e.split]
    files = [e.file for e in listed if is_respelled(e.file)]
    unknown = [e.file for e in listed if e.person is None]
    kinds = {
        "split-names": (splits, "splits spelled in another way"),
        "paths": (
            files,
            "paths with blanks around them, the separators of Windows or another "
            "Unicode form than NFC, none of which count",
        ),
        "unknown-people": (
            unknown,
            "pictures without a person (in train they have no identity, in val and "
            "test each is a person of its own)",
        ),
    }
    found = [
        Finding(kind, "note", len(rows), f"{text}: {len(rows)} ({_few(rows)})")
        for kind, (rows, text) in kinds.items()
        if rows
    ]
    if repeated:
        text = f"entries about a picture listed before, merged: {repeated}"
        found.append(Finding("repeated-pictures", "note", repeated, text))
    return found


def entries(listed: Sequence[Listed], numbers: Mapping[str | int, int]) -> list[Entry]:
    """Return the pictures with their people as numbers.

    An unknown person has UNKNOWN_PERSON in training; in val and test each such picture
    is a person of its own, numbered after the known ones.

    Args:
        listed: The pictures.
        numbers: The number of each known person.

    Raises:
        AnnotationError: If the numbers do not suffice.
    """
    own = max(numbers.values(), default=-1) + 1
    made = []
    for picture in listed:
        if picture.person is not None:
            person = numbers[picture.person]
        elif picture.split == "train":
            person = UNKNOWN_PERSON
        else:
            person, own = own, own + 1
        made.append(Entry(picture.split, picture.file, person, tuple(picture.captions)))
    if own > LARGEST_PERSON + 1:
        raise AnnotationError(
            f"{listed[0].raw.file}: people are numbered up to {LARGEST_PERSON}, which "
            "leaves no numbers for the unknown ones: number them from 0"
        )
    return made


def assemble(
    name: str,
    root: str,
    entries: Iterable[Entry],
    *,
    image_folder: str,
    person_names: tuple[str, ...] = (),
    sources: Mapping[str, ImageSource] | None = None,
    notes: Sequence[Finding] = (),
) -> PersonDataset:
    """Sort the entries into splits, each in the order of the annotation.

    Args:
        name: The reader's name.
        root: The folder to name in messages.
        entries: The pictures of all splits.
        image_folder: Folder that the entries' files are relative to.
        person_names: See PersonDataset.
        sources: What reads each split's pictures by index; None if they are files.
        notes: See PersonDataset.
    """
    sources = sources or {}
    by_split: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for entry in entries:
        by_split[entry.split].append(entry)
    folder = ImageFolder(os.path.abspath(image_folder))
    train, val, test = (
        _split(split, by_split[split], folder, sources) for split in SPLITS
    )
    return PersonDataset(
        name,
        root,
        train,
        val if val.images else None,
        test,
        person_names,
        folder.folder,
        tuple(notes),
    )


def _split(
    name: str,
    entries: list[Entry],
    folder: ImageFolder,
    sources: Mapping[str, ImageSource],
) -> Split:
    images = tuple(Picture(e.file, folder.locate(e.file), e.person) for e in entries)
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


def _few(names: Sequence[str]) -> str:
    return examples(dict.fromkeys(names), of=len(set(names)))
