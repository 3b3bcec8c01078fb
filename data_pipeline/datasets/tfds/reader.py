# SPDX-License-Identifier: Apache-2.0
"""Reads what the builders prepared into the same PersonDataset as the file readers."""

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data_pipeline.datasets.annotations import Entry, assemble
from data_pipeline.datasets.raw import AnnotationError, DatasetMissing
from data_pipeline.datasets.tfds.builders import VERSION
from data_pipeline.records import ImageSource, PersonDataset

_log = logging.getLogger(__name__)
_RAW = {"image": tfds.decode.SkipDecoding()}


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
    builder = tfds.builder_from_directory(folder)
    metadata = builder.info.metadata
    entries = [
        Entry(split, file, person, tuple(captions))
        for split, file, person, captions in metadata["entries"]
    ]
    dataset = assemble(
        name,
        str(folder),
        entries,
        image_folder=str(folder),
        person_names=tuple(metadata["person_names"]),
        sources=_sources(builder, entries),
    )
    if dataset.fingerprint != metadata["fingerprint"]:
        raise AnnotationError(
            f"{folder / 'metadata.json'}: wanted records with fingerprint "
            f"{metadata['fingerprint']}, got {dataset.fingerprint}: prepare it again"
        )
    return dataset


def _sources(
    builder: tfds.core.DatasetBuilder, entries: list[Entry]
) -> dict[str, ImageSource]:
    random_access = builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    source = _RandomAccess if random_access else _InMemory
    files = {
        split: [e.file for e in entries if e.split == split]
        for split in builder.info.splits
    }
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
        records = tfds.as_numpy(
            self.builder.as_dataset(split=self.split, decoders=_RAW)
        )
        images = [
            _checked(record, self.files[index], self.split, index)
            for index, record in enumerate(records)
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


def _checked(record: dict[str, Any], file: str, split: str, index: int) -> bytes:
    """Return the record's picture if it is the one the annotation refers to."""
    came = record["file"].decode()
    if came != file:
        raise AnnotationError(
            f"record {index} of split {split!r}: wanted {file!r}, got {came!r}: the "
            "shards do not belong to metadata.json, prepare them again"
        )
    return record["image"]
