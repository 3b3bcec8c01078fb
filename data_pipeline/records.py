# SPDX-License-Identifier: Apache-2.0
"""The common form of all data sets: pictures, pairs, splits and data sets."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32

from data_pipeline.findings import Finding
from data_pipeline.regular import read_regular

UNKNOWN_PERSON = -1
"""Person of a picture whose identity the annotation does not state."""


@runtime_checkable
class ImageSource(Protocol):
    """Source of a split's encoded pictures when they are not plain files."""

    def read(self, index: int) -> bytes:
        """Return the encoded bytes (JPEG, PNG, ...) of picture `index` of the split."""
        ...


@dataclass(frozen=True)
class Picture:
    """One picture of one person.

    Attributes:
        file: Path as in the annotation, relative to the image folder.
        path: Absolute path on disk; only a name for messages if the split has a source.
        person: The data set's own id, or UNKNOWN_PERSON.
    """

    file: str
    path: str
    person: int


@dataclass(frozen=True)
class Pair:
    """A caption and the picture it describes; `image` indexes `Split.images`."""

    image: int
    caption: str


@dataclass(frozen=True)
class Split:
    """The pictures of one split (g of them) and its pairs (p of them).

    Attributes:
        name: "train", "val" or "test".
        images: The pictures in the annotation's order; the gallery in evaluation.
        pairs: The pairs, ordered by picture; their captions are evaluation's queries.
        source: None if the pictures are files, otherwise what reads them by index.
        noisy: Which pairs have the caption of another person; None: not known. For
            the log alone: no loss may see it.

    Raises:
        ValueError: If a pair refers to a picture that the split does not have.
    """

    name: str
    images: tuple[Picture, ...]
    pairs: tuple[Pair, ...]
    source: ImageSource | None = field(default=None, compare=False, repr=False)
    noisy: Bool[np.ndarray, "p"] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for number, pair in enumerate(self.pairs):
            if not 0 <= pair.image < len(self.images):
                raise ValueError(
                    f"split {self.name!r}: pair {number} refers to picture "
                    f"{pair.image}, wanted an index below {len(self.images)}"
                )

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of picture `index`, from the source or its file.

        Raises:
            OSError: If the file cannot be read or is no regular file.
        """
        if self.source is not None:
            return self.source.read(index)
        return read_regular(self.images[index].path)

    def stamp(self, index: int) -> str:
        """Return what tells a changed picture `index` from the one it was.

        For a file that is its size and the time of its last change, for a source the
        digest of the encoded bytes.

        Raises:
            OSError: If there is no such file.
        """
        if self.source is not None:
            return hashlib.sha256(self.source.read(index)).hexdigest()
        known = Path(self.images[index].path).stat()
        return f"{known.st_size} {known.st_mtime_ns}"

    @cached_property
    def image_persons(self) -> Int32[np.ndarray, "g"]:
        """The raw person id of each picture."""
        return _int32([image.person for image in self.images])

    @cached_property
    def pair_images(self) -> Int32[np.ndarray, "p"]:
        """The picture index of each pair."""
        return _int32([pair.image for pair in self.pairs])

    @cached_property
    def pair_persons(self) -> Int32[np.ndarray, "p"]:
        """The raw person id of each pair."""
        return _frozen(self.image_persons[self.pair_images])

    @cached_property
    def identities(self) -> Int32[np.ndarray, "k"]:
        """The known raw person ids of the pictures, sorted, each once."""
        persons = np.unique(self.image_persons)
        return _frozen(persons[persons != UNKNOWN_PERSON])

    @cached_property
    def pair_labels(self) -> Int32[np.ndarray, "p"]:
        """The class of each pair: its person's index in `identities`, -1 if unknown."""
        labels = np.searchsorted(self.identities, self.pair_persons).astype(np.int32)
        return _frozen(np.where(self.pair_persons == UNKNOWN_PERSON, -1, labels))

    @cached_property
    def captions(self) -> list[str]:
        """The caption of each pair."""
        return [pair.caption for pair in self.pairs]

    @cached_property
    def contents(self) -> dict[str, str]:
        """Hex SHA-256 of the split's "pictures", "people" and "captions", in order.

        Pictures count by their file names, people by who is the same, not by their
        numbers, which may depend on other splits. Captions include whose they are.
        """
        people = np.searchsorted(self.identities, self.image_persons)
        people = np.where(self.image_persons == UNKNOWN_PERSON, -1, people)
        rows: dict[str, list[Any]] = {
            "pictures": [image.file for image in self.images],
            "people": people.tolist(),
            "captions": [[pair.image, pair.caption] for pair in self.pairs],
        }
        return {
            name: hashlib.sha256(json.dumps(row).encode()).hexdigest()
            for name, row in rows.items()
        }


@dataclass(frozen=True)
class PersonDataset:
    """A data set of people, as `open_dataset` returns it for every format.

    Attributes:
        name: The reader's name, such as "cuhk_pedes".
        root: The folder it was read from.
        train: The training split; empty if the data set has none.
        val: The validation split; None if the data set has none.
        test: The test split; empty if the data set has none.
        person_names: If the reader numbered the people itself, the annotation's name of
            person i at index i; otherwise empty.
        image_folder: Folder that the pictures' files are relative to.
        notes: What the reader put in order or could not know.
    """

    name: str
    root: str
    train: Split
    val: Split | None
    test: Split
    person_names: tuple[str, ...] = ()
    image_folder: str = ""
    notes: tuple[Finding, ...] = ()

    def evaluation_split(self, name: str) -> Split:
        """Return the split to evaluate on: "val" or "test".

        Raises:
            ValueError: If the name is another, or the split has no captions.
        """
        if name not in ("val", "test"):
            raise ValueError(f"evaluation split {name!r}: wanted 'val' or 'test'")
        split = self.val if name == "val" else self.test
        if split is None or not split.pairs:
            there = [s.name for s in self.splits if s.pairs]
            raise ValueError(
                f"data set {self.name!r} at {self.root} has no captions in split "
                f"{name!r}; it has them in: {', '.join(there) or 'none'}"
            )
        return split

    @property
    def measurable(self) -> tuple[str, ...]:
        """Names of the splits that an evaluation can use: of val and test."""
        return tuple(s.name for s in self.splits if s.pairs and s is not self.train)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that exist, in the order train, val, test."""
        return tuple(s for s in (self.train, self.val, self.test) if s is not None)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of split names, file names, person ids and captions, in order.

        Pixels and locations do not count: a moved copy has the same fingerprint, and so
        has the same data prepared by TFDS.
        """
        digest = hashlib.sha256()
        for split in self.splits:
            for row in _rows(split):
                digest.update(json.dumps(row).encode("ascii") + b"\n")
        return digest.hexdigest()


def _rows(split: Split) -> Iterator[list[str | int]]:
    """Yield the rows that a fingerprint covers: the pictures, then the pairs."""
    for image in split.images:
        yield [split.name, image.file, image.person]
    for pair in split.pairs:
        yield [split.name, pair.image, pair.caption]


def _int32(values: list[int]) -> Int32[np.ndarray, "n"]:
    return _frozen(np.asarray(values, dtype=np.int32))


def _frozen(values: np.ndarray) -> np.ndarray:
    """Make a cached array read-only, because all callers get the same one."""
    values.setflags(write=False)
    return values
