# SPDX-License-Identifier: Apache-2.0
"""Embeddings on disk with the files they belong to, read by memory mapping.

A shard is a folder that is written once:

    rows.npy     float32 or float16 [g, d], unit rows
    codes.npy    int8 [g, d] and scales.npy float32 [g], for the storage "int8"
    table.npy    int64 [g, 3]: where the name ends in names.bin, size, mtime in ns
    names.bin    the files' names, relative to the gallery, one after the other

With "int8" a search reads the codes alone and ranks its short list anew by the rows.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float, Float32, Int8, Int64, UInt8

from fmfa_jax.search.store import SearchError, sync_folder

SHARD_ROWS = 65536
"""Pictures in a full shard."""


@dataclass(frozen=True)
class Stamp:
    """A file of the gallery as it was when it was embedded."""

    file: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Part:
    """Embeddings in memory, with their files: what a shard is made from."""

    rows: Float[np.ndarray, "g d"]
    stamps: tuple[Stamp, ...]


@dataclass(frozen=True)
class Shard:
    """Embeddings on disk; nothing is read until it is asked for."""

    rows: Float[np.ndarray, "g d"]
    codes: Int8[np.ndarray, "g d"] | None
    scales: Float32[np.ndarray, "g"] | None
    table: Int64[np.ndarray, "g 3"]
    names: UInt8[np.ndarray, "bytes"]

    def stamp(self, row: int) -> Stamp:
        """Return the file of a row."""
        start = int(self.table[row - 1, 0]) if row else 0
        end, size, mtime_ns = self.table[row].tolist()
        return Stamp(os.fsdecode(self.names[start:end].tobytes()), size, mtime_ns)

    def stamps(self) -> list[Stamp]:
        """Return the files of all rows."""
        names = self.names.tobytes()
        starts = np.concatenate([[0], self.table[:-1, 0]]).tolist()
        return [
            Stamp(os.fsdecode(names[start:end]), size, mtime_ns)
            for start, (end, size, mtime_ns) in zip(
                starts, self.table.tolist(), strict=True
            )
        ]


def open_shard(folder: Path) -> Shard:
    """Map a shard.

    Raises:
        SearchError: a file is missing, damaged or does not fit the others.
    """
    try:
        coded = (folder / "codes.npy").exists()
        shard = Shard(
            rows=_mapped(folder / "rows.npy"),
            codes=_mapped(folder / "codes.npy") if coded else None,
            scales=_mapped(folder / "scales.npy") if coded else None,
            table=_mapped(folder / "table.npy"),
            names=np.memmap(folder / "names.bin", np.uint8, "r"),
        )
    except (OSError, ValueError, TypeError) as error:
        raise SearchError(
            f"the shard {folder} is missing or damaged ({error}); index the gallery "
            "again into another folder"
        ) from error
    count = len(shard.rows)
    if len(shard.table) != count or shard.table[-1, 0] != len(shard.names):
        raise SearchError(f"the files of the shard {folder} do not fit each other")
    return shard


def _mapped(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r"))


def write_shard(folder: Path, part: Part, storage: str) -> None:
    """Write a shard that appears whole under its name, or not at all."""
    draft = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    kept = np.float32 if storage == "float32" else np.float16
    arrays = {"rows": part.rows.astype(kept, copy=False)}
    if storage == "int8":
        arrays["codes"], arrays["scales"] = quantize(arrays["rows"])
    names = [os.fsencode(stamp.file) for stamp in part.stamps]
    ends = np.cumsum([len(name) for name in names])
    sizes = [(stamp.size, stamp.mtime_ns) for stamp in part.stamps]
    arrays["table"] = np.column_stack([ends, sizes]).astype(np.int64)
    for name, array in arrays.items():
        with _synced(draft / f"{name}.npy") as stream:
            np.save(stream, array)
    with _synced(draft / "names.bin") as stream:
        stream.write(b"".join(names))
    sync_folder(draft)
    os.replace(draft, folder)
    sync_folder(folder.parent)


@contextlib.contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that is on the disk when the block ends."""
    with path.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def quantize(
    rows: Float[np.ndarray, "g d"],
) -> tuple[Int8[np.ndarray, "g d"], Float32[np.ndarray, "g"]]:
    """Round each row to 255 levels of its own; row = code * scale, nearly."""
    codes = np.empty(rows.shape, np.int8)
    scales = np.empty(len(rows), np.float32)
    for first in range(0, len(rows), 4096):
        part = rows[first : first + 4096].astype(np.float32)
        scale = np.maximum(np.abs(part).max(1), 1e-12) / 127
        codes[first : first + 4096] = np.rint(part / scale[:, None])
        scales[first : first + 4096] = scale
    return codes, scales


def packed(parts: Iterator[Part], rows: int = SHARD_ROWS) -> Iterator[Part]:
    """Cut and join parts, in order, so that each but the last has `rows` rows."""
    waiting: list[Part] = []
    for part in parts:
        waiting.append(part)
        while sum(len(each.rows) for each in waiting) >= rows:
            whole = _joined(waiting)
            yield Part(whole.rows[:rows], whole.stamps[:rows])
            waiting = [Part(whole.rows[rows:], whole.stamps[rows:])]
    if any(len(each.rows) for each in waiting):
        yield _joined(waiting)


def _joined(parts: Sequence[Part]) -> Part:
    # float16 beside float32 gives float32, whose rounding back changes nothing.
    rows = np.concatenate([part.rows for part in parts if len(part.rows)])
    return Part(rows, tuple(stamp for part in parts for stamp in part.stamps))
