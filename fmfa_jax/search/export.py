# SPDX-License-Identifier: Apache-2.0
"""Write an index for other engines: as one Parquet file, or as NumPy and JSON.

Rows are float32 and of length 1, in the order of the index, with the name of each file
relative to the gallery, its SHA-256 and size, and the person in it where that is known.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.lib.format import open_memmap

from data_pipeline.records import UNKNOWN_PERSON, PersonDataset
from fmfa_jax import files
from fmfa_jax.search.query import Gallery
from fmfa_jax.search.shards import Stamp
from fmfa_jax.search.store import SearchError

EMBEDDINGS, PICTURES, ABOUT = "embeddings.npy", "pictures.jsonl", "about.json"
_CHUNK = 8192
"""Rows in memory at a time, and in a row group of Parquet."""


def export(
    index: str | Path, out: str | Path, to: str, data: PersonDataset | None = None
) -> tuple[int, int]:
    """Write the embeddings of an index under a name that is free.

    Args:
        index: Folder of the index.
        out: File ("parquet") or folder ("npy") to write.
        to: One of `FORMATS`.
        data: A data set that knows the persons of the gallery's pictures.

    Returns:
        The number of pictures, and of those whose person is known.

    Raises:
        SearchError: The index is damaged or empty, `out` exists, or not one picture of
            the index is of the data set.
    """
    gallery, out = Gallery(index), Path(out)
    if os.path.lexists(out):
        raise SearchError(f"{out} is there already; choose another name")
    if not len(gallery):
        raise SearchError(f"{index} holds no pictures: there is nothing to export")
    for shard in gallery.shards:
        shard.check()
    table = _Table(gallery, _persons(data) if data else {})
    known = sum(row["person"] is not None for rows, _ in table.chunks() for row in rows)
    if data and not known:
        raise SearchError(
            f"not one of the {len(gallery)} pictures below {gallery.root} is of the "
            f"data set {data.name} at {data.root}: wanted the gallery's own, in place"
        )
    FORMATS[to](table, out)
    return len(gallery), known


@dataclass(frozen=True)
class _Table:
    """An index as a table; `persons` tells by path who is in a picture."""

    gallery: Gallery
    persons: Mapping[str, str]

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return self.gallery.shards[0].rows.shape[1]

    def chunks(
        self,
    ) -> Iterator[tuple[list[dict[str, Any]], Float32[np.ndarray, "_ d"]]]:
        """Yield what is known of some pictures, and their embeddings."""
        for shard in self.gallery.shards:
            for first in range(0, len(shard.rows), _CHUNK):
                stamps = shard.stamps(first, first + _CHUNK)
                embeddings = shard.unit(slice(first, first + _CHUNK))
                yield [self._row(stamp) for stamp in stamps], embeddings

    def _row(self, stamp: Stamp) -> dict[str, Any]:
        path = os.path.realpath(self.gallery.root / stamp.file) if self.persons else ""
        return {
            "file": stamp.file,
            "sha256": stamp.sha256.hex() or None,
            "size": stamp.size,
            "person": self.persons.get(path),
        }

    def about(self) -> dict[str, Any]:
        """Say what made the embeddings, as JSON."""
        record = self.gallery.record
        return {
            "rows": len(self.gallery),
            "width": self.width,
            "similarity": "cosine; rows have length 1",
            "stored_as": record.storage,
            "gallery": str(self.gallery.root),
            "model": asdict(record.model),
            "preprocessing": record.preprocessing,
            "tokenizer_sha256": record.tokenizer_sha256,
        }


def _persons(data: PersonDataset) -> dict[str, str]:
    """Return who is in which picture of a data set, by the annotation's own names."""
    names = data.person_names
    return {
        os.path.realpath(picture.path): names[picture.person]
        if names
        else str(picture.person)
        for split in data.splits
        for picture in split.images
        if picture.person != UNKNOWN_PERSON
    }


def _to_npy(table: _Table, out: Path) -> None:
    shape, begin = (len(table.gallery), table.width), 0
    with files.replacing(out) as draft:
        draft.mkdir()
        matrix = open_memmap(draft / EMBEDDINGS, "w+", np.float32, shape)
        with (draft / PICTURES).open("w", encoding="ascii") as stream:
            for rows, embeddings in table.chunks():
                matrix[begin : begin + len(rows)] = embeddings
                begin += len(rows)
                stream.writelines(json.dumps(row) + "\n" for row in rows)
        matrix.flush()
        files.write_json(draft / ABOUT, table.about())


def _to_parquet(table: _Table, out: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise SearchError(
            "--to parquet needs a package that is not installed: pip install pyarrow; "
            "--to npy needs nothing"
        ) from error

    text, vector = pyarrow.string(), pyarrow.list_(pyarrow.float32(), table.width)
    kinds = {"file": text, "sha256": text, "size": pyarrow.int64(), "person": text}
    about = json.dumps(files.valid_json(table.about()))
    schema = pyarrow.schema({**kinds, "embedding": vector}, metadata={"fmfa": about})
    with (
        files.replacing(out) as draft,
        parquet.ParquetWriter(draft, schema) as writer,
    ):
        for rows, embeddings in table.chunks():
            _check_names(rows)
            columns = [
                pyarrow.array([row[name] for row in rows], kind)
                for name, kind in kinds.items()
            ]
            flat = pyarrow.array(embeddings.reshape(-1))
            columns.append(pyarrow.FixedSizeListArray.from_arrays(flat, table.width))
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))


def _check_names(rows: list[dict[str, Any]]) -> None:
    """Refuse names that Parquet cannot hold."""
    for row in rows:
        try:
            row["file"].encode()
        except UnicodeEncodeError as error:
            raise SearchError(
                f"the name {row['file']} is not UTF-8, which Parquet wants: rename the "
                "file and `add`, or take --to npy"
            ) from error


FORMATS = {"npy": _to_npy, "parquet": _to_parquet}
