# SPDX-License-Identifier: Apache-2.0
"""Embeddings on disk with the files they belong to, read by memory mapping.

A shard is a folder that is written once:

    rows.npy     float32 unit rows [g, d]; or int16, each row with a scale of its own
    scales.npy   float32 [g] of int16 rows: row = integers * scale
    codes.npy    int8 [g, d], the integers / 258, for the storage "int8"
    table.npy    int64 [g, 3]: where the name ends in names.bin, size, mtime in ns
    names.bin    the files' names, relative to the gallery, one after the other

With "int8" a search reads the codes alone and ranks its short list anew by the rows.
Two bytes are int16 and not float16, because unit rows have no use for an exponent: the
rounding is finer at the same size and speed. Of the ten best of a million, int16 keeps
0.9997 and float16 would keep 0.9995 (benchmarks/search.py).
"""

import contextlib
import mmap
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int16, Int64, UInt8

from fmfa_jax.search.store import SearchError, sync_folder

SHARD_ROWS = 65536
"""Pictures in a full shard."""
CODE_STEP = 258
"""Steps of an int16 row in one of its int8 code: 32767 of them are 127 codes."""


@dataclass(frozen=True)
class Stamp:
    """A file of the gallery as it was when it was embedded."""

    file: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Part:
    """Embeddings in memory, with their files: what a shard is made from."""

    rows: Float32[np.ndarray, "g d"]
    stamps: tuple[Stamp, ...]


@dataclass(frozen=True)
class Shard:
    """Embeddings on disk; nothing is read until it is asked for."""

    rows: Float32[np.ndarray, "g d"] | Int16[np.ndarray, "g d"]
    scales: Float32[np.ndarray, "g"] | None
    codes: Int8[np.ndarray, "g d"] | None
    table: Int64[np.ndarray, "g 3"]
    names: UInt8[np.ndarray, "bytes"]

    def unit(
        self, chosen: slice | Int64[np.ndarray, "k"] | Bool[np.ndarray, "g"]
    ) -> Float32[np.ndarray, "k d"]:
        """Return rows as the model gave them, as exactly as they are kept."""
        rows = np.asarray(self.rows[chosen], np.float32)
        return rows if self.scales is None else rows * self.scales[chosen][:, None]

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
        there = {path.name for path in folder.iterdir()}
        shard = Shard(
            rows=_mapped(folder / "rows.npy"),
            scales=_mapped(folder / "scales.npy") if "scales.npy" in there else None,
            codes=_mapped(folder / "codes.npy") if "codes.npy" in there else None,
            table=_mapped(folder / "table.npy"),
            names=np.memmap(folder / "names.bin", np.uint8, "r"),
        )
    except (OSError, ValueError, TypeError) as error:
        raise SearchError(
            f"the shard {folder} is missing or damaged ({error}); index the gallery "
            "again into another folder"
        ) from error
    count = len(shard.rows)
    if (shard.rows.dtype == np.int16) != (shard.scales is not None):
        raise SearchError(f"the shard {folder} lacks its scales, or has some too many")
    if len(shard.table) != count or shard.table[-1, 0] != len(shard.names):
        raise SearchError(f"the files of the shard {folder} do not fit each other")
    return shard


def _mapped(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r"))


def expect_single_rows(rows: np.ndarray) -> None:
    """Tell the system that few rows of a mapped array will be read, here and there.

    Otherwise it reads megabytes around each, and a short list the whole file.
    """
    base = rows
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if base is not None and hasattr(mmap, "MADV_RANDOM"):
        base.madvise(mmap.MADV_RANDOM)


def write_shard(folder: Path, part: Part, storage: str) -> None:
    """Write a shard that appears whole under its name, or not at all."""
    draft = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    arrays: dict[str, np.ndarray] = {"rows": part.rows}
    if storage != "float32":
        arrays["rows"], arrays["scales"] = quantize(part.rows)
    if storage == "int8":
        arrays["codes"] = np.rint(arrays["rows"] / np.float32(CODE_STEP)).astype(
            np.int8
        )
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
    rows: Float32[np.ndarray, "g d"],
) -> tuple[Int16[np.ndarray, "g d"], Float32[np.ndarray, "g"]]:
    """Round each row to 65535 levels of its own; row = integers * scale, nearly."""
    scales = (np.maximum(np.abs(rows).max(1), 1e-12) / 32767).astype(np.float32)
    integers = np.empty(rows.shape, np.int16)
    for first in range(0, len(rows), 4096):
        here = slice(first, first + 4096)
        integers[here] = np.rint(rows[here] / scales[here, None]).clip(-32767, 32767)
    return integers, scales


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
    rows = np.concatenate([part.rows for part in parts if len(part.rows)])
    return Part(rows, tuple(stamp for part in parts for stamp in part.stamps))
