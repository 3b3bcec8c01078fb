# SPDX-License-Identifier: Apache-2.0
"""Reads what the builders prepared into the same PersonDataset as the file readers."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data_pipeline.datasets.annotations import Entry, assemble
from data_pipeline.datasets.raw import AnnotationError, DatasetMissing, RawEntry
from data_pipeline.datasets.tfds.builders import BUILDERS, VERSION
from data_pipeline.records import UNKNOWN_PERSON, ImageSource, PersonDataset

_log = logging.getLogger(__name__)
_RAW = {"image": tfds.decode.SkipDecoding()}
_FIELDS = ("split", "file", "person", "captions")


def read_prepared(name: str, data_dir: str) -> PersonDataset:
    """Open the data set `name` as prepared under TFDS's `data_dir`.

    Raises:
        DatasetMissing: If it has not been prepared there.
        AnnotationError: If its metadata is not what was prepared.
    """
    folder = Path(os.path.expanduser(data_dir)).absolute() / name / VERSION
    if not (folder / "dataset_info.json").is_file():
        raise DatasetMissing(
            f"{name} is not prepared under {data_dir!r}. Looked for\n"
            f"  {folder / 'dataset_info.json'}: missing\n"
            f"Prepare it: python -m data_pipeline.datasets.tfds {name} "
            f"--manual_dir=ROOT --data_dir={data_dir}"
        )
    try:
        # Not `tfds.builder_from_directory`, which imports what features.json names.
        builder = BUILDERS[name](data_dir=folder.parents[1])
        metadata = dict(builder.info.metadata.items())
    # Of damaged files TFDS, JSON and protobuf raise nearly anything.
    except Exception as error:
        raise AnnotationError(
            f"{folder}: wanted what TFDS prepared, got {type(error).__name__}: "
            f"{str(error)[:300]}: prepare it again"
        ) from error
    path = str(folder / "metadata.json")
    entries = _entries(path, metadata.get("entries"))
    dataset = assemble(
        name,
        str(folder),
        entries,
        image_folder=str(folder),
        person_names=_names(path, metadata.get("person_names"), entries),
        sources=_sources(builder, entries),
    )
    if dataset.fingerprint != metadata.get("fingerprint"):
        raise AnnotationError(
            f"{path}: wanted records with fingerprint "
            f"{str(metadata.get('fingerprint'))[:100]}, got {dataset.fingerprint}: "
            "prepare it again"
        )
    return dataset


def _names(path: str, names: Any, entries: list[Entry]) -> tuple[str, ...]:
    """Return the people's names, none if they have numbers only."""
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    largest = max((e.person for e in entries if e.split == "train"), default=-1)
    if not texts or 0 < len(names) <= largest:
        raise AnnotationError(f"{path}: wanted person_names, a name of each person")
    return tuple(names)


def _entries(path: str, rows: Any) -> list[Entry]:
    if not isinstance(rows, list):
        raise AnnotationError(f"{path}: wanted a list of entries: prepare it again")
    return [_entry(path, number, row) for number, row in enumerate(rows)]


def _entry(path: str, number: int, row: Any) -> Entry:
    if not isinstance(row, list) or len(row) != len(_FIELDS):
        raise AnnotationError(f"{path}, entry {number}: wanted {', '.join(_FIELDS)}")
    raw = RawEntry(path, f"entry {number}", dict(zip(_FIELDS, row, strict=True)))
    unknown = raw.values["person"] == UNKNOWN_PERSON
    person = UNKNOWN_PERSON if unknown else raw.person("person")
    if person is None:
        raise raw.error("person", f"a person's number, or {UNKNOWN_PERSON}")
    return Entry(
        raw.split("split"), raw.image_file("file"), person, raw.texts("captions")
    )


def _sources(
    builder: tfds.core.DatasetBuilder, entries: list[Entry]
) -> dict[str, ImageSource]:
    random_access = builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    source = _RandomAccess if random_access else _InMemory
    splits = builder.info.splits
    files = {
        split: [e.file for e in entries if e.split == split]
        for split in dict.fromkeys((*splits, *(e.split for e in entries)))
    }
    for split, names in files.items():
        count = splits[split].num_examples if split in splits else 0
        if count != len(names):
            raise AnnotationError(
                f"{builder.data_dir}: wanted {len(names)} records of split {split!r}, "
                f"as metadata.json lists, got {count}: prepare it again"
            )
    return {split: source(builder, split, names) for split, names in files.items()}


@dataclass(frozen=True)
class _RandomAccess:
    """array_record shards: each picture is read on request."""

    builder: tfds.core.DatasetBuilder
    split: str
    files: list[str]

    @cached_property
    def _records(self) -> Sequence[dict[str, Any]]:
        return self.builder.as_data_source(self.split, decoders=_RAW)

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of picture `index`."""
        with _damage(self.split):
            record = self._records[index]
        return _checked(record, self.files[index], self.split, index)


class _InMemory:
    """tfrecord shards have no index: all encoded pictures are read once and kept."""

    def __init__(
        self, builder: tfds.core.DatasetBuilder, split: str, files: list[str]
    ) -> None:
        self.builder = builder
        self.split = split
        self.files = files
        self._lock = threading.Lock()

    @cached_property
    def _images(self) -> list[bytes]:
        with _damage(self.split):
            read = self.builder.as_dataset(split=self.split, decoders=_RAW)
            records = list(tfds.as_numpy(read))
        images = [
            _checked(record, file, self.split, index)
            for index, (record, file) in enumerate(
                zip(records, self.files, strict=True)
            )
        ]
        megabytes = sum(map(len, images)) / 2**20
        _log.info(
            "%s: %d encoded pictures of %r held in memory, %.1f MiB",
            self.builder.data_dir,
            len(images),
            self.split,
            megabytes,
        )
        return images

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of picture `index`."""
        with self._lock:  # many threads ask at once, but reading once is enough
            images = self._images
        return images[index]


@contextlib.contextmanager
def _damage(split: str) -> Iterator[None]:
    """Turn whatever TFDS and its libraries raise of damaged shards into an OSError."""
    try:
        yield
    except Exception as error:
        raise OSError(
            f"the shards of split {split!r} are damaged ({type(error).__name__}: "
            f"{str(error)[:300]}): prepare them again"
        ) from error


def _checked(record: dict[str, Any], file: str, split: str, index: int) -> bytes:
    """Return the record's picture if it is the one the annotation refers to."""
    came = record["file"].decode(errors="replace")
    if came != file:
        raise AnnotationError(
            f"record {index} of split {split!r}: wanted {file!r}, got {came!r}: the "
            "shards do not belong to metadata.json, prepare them again"
        )
    return record["image"]
