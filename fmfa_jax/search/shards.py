# SPDX-License-Identifier: Apache-2.0
"""Embeddings on disk with the files they belong to, read by memory mapping.

A shard is one safetensors file that is written once:

    rows            float32 or float16 [g, d], unit rows
    ends            int64 [g], where each file's name ends in `names`
    sizes, mtimes   int64 [g], the files' sizes and times in nanoseconds
    names           uint8, the files' names relative to the gallery, joined
    ctimes          int64 [g], when the files' inodes last changed, in nanoseconds
    digests         uint8 [g, 32], SHA-256 of the files

The last two are absent from shards of an index of version 2. The rows begin on a
multiple of 64 bytes, where JAX on a CPU takes them without a copy.
"""

import hashlib
import itertools
import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, Shaped, UInt8

from fmfa_jax import files
from fmfa_jax.search.store import SHARDS, STORAGES, IndexRecord, SearchError
from fmfa_jax.weights import read_archive
from fmfa_jax.weights import sha256 as file_sha256

SHARD_ROWS = 65536
"""Pictures in a full shard."""
_ALIGNED = 64
_TYPES = {"float32": "F32", "float16": "F16", "int64": "I64", "uint8": "U8"}
_TENSORS = {
    "rows": STORAGES,
    **dict.fromkeys(("ends", "sizes", "mtimes"), ("int64",)),
    "names": ("uint8",),
    "ctimes": ("int64",),
    "digests": ("uint8",),
}
"""The tensors in the file's order, with the types that they may have."""
_LATER = ("ctimes", "digests")
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class Stamp:
    """A file of the gallery as it was when it was embedded.

    `ctime_ns` is 0 and `sha256` empty where they are not known.
    """

    file: str
    size: int
    mtime_ns: int
    ctime_ns: int = 0
    sha256: bytes = b""


@dataclass(frozen=True)
class Part:
    """Embeddings in memory with their files: what a shard is made from."""

    rows: Float32[np.ndarray, "g d"]
    stamps: tuple[Stamp, ...]


@dataclass(frozen=True, eq=False)
class Shard:
    """Embeddings on disk; nothing is read until it is needed.

    `checksum` is what the file itself states, `sha256` what the index states of it;
    `tensors` are those that the file has.
    """

    path: Path
    rows: Shaped[np.ndarray, "g d"]
    ends: Int64[np.ndarray, "g"]
    sizes: Int64[np.ndarray, "g"]
    mtimes: Int64[np.ndarray, "g"]
    names: UInt8[np.ndarray, "bytes"]
    ctimes: Int64[np.ndarray, "g"]
    digests: UInt8[np.ndarray, "g 32"]
    checksum: str
    tensors: tuple[str, ...]
    sha256: str = ""

    def unit(
        self, chosen: slice | Int64[np.ndarray, "k"] | Bool[np.ndarray, "g"]
    ) -> Float32[np.ndarray, "k d"]:
        """Return rows in float32."""
        return np.asarray(self.rows[chosen], np.float32)

    def stamps(self, first: int = 0, last: int | None = None) -> list[Stamp]:
        """Return the files of the rows from `first` up to `last`, by default of all."""
        here = slice(first, last)
        start = int(self.ends[first - 1]) if first else 0
        cuts = itertools.pairwise([start, *self.ends[here].tolist()])
        files = [os.fsdecode(self.names[begin:end].tobytes()) for begin, end in cuts]
        columns = self.sizes, self.mtimes, self.ctimes
        numbers = [column[here].tolist() for column in columns]
        digests = [each.tobytes() if each.any() else b"" for each in self.digests[here]]
        return list(map(Stamp, files, *numbers, digests))

    def check(self) -> None:
        """Raise SearchError if a tensor has changed since the file was written.

        At the speed of memory; see `checksum`.
        """
        if checksum(getattr(self, name) for name in self.tensors) != self.checksum:
            raise _damaged(self.path, "its content has changed")

    def verify(self) -> str:
        """Compare the SHA-256 of the file, and return it.

        An index of version 2 states none: there the checksum is compared.

        Raises:
            SearchError: The file has changed since it was written.
        """
        try:
            found = file_sha256(self.path)
        except OSError as error:
            raise _damaged(self.path, error) from error
        if not self.sha256:
            self.check()
        elif found != self.sha256:
            raise _damaged(self.path, "its content has changed: another SHA-256")
        return found


def checksum(arrays: Iterable[np.ndarray]) -> str:
    """Add up the arrays' bytes as 64-bit words.

    A changed bit always changes the sum. It runs at the speed of memory, so that a
    gallery can be checked whenever it is opened; a cryptographic digest could not.
    """
    total = 0
    for array in arrays:
        data = _bytes(array)
        whole = len(data) // 8 * 8
        total += int(data[:whole].view(np.uint64).sum(dtype=np.uint64))
        total += int.from_bytes(data[whole:].tobytes(), "little")
    return f"{total % 2**64:016x}"


def open_shards(
    folder: Path, record: IndexRecord, opened: Iterable[Shard] = ()
) -> list[Shard]:
    """Map all shards of an index, in order.

    Those of `opened` that the record still names are taken as they are.
    """
    there = {(shard.path, shard.sha256): shard for shard in opened if shard.sha256}
    shards = []
    for each in record.shards:
        path = shard_path(folder, each.name)
        shard = there.get((path, each.sha256)) or open_shard(path, each.sha256)
        shards.append(shard)
    for each, shard in zip(record.shards, shards, strict=True):
        if len(shard.rows) != each.rows or shard.rows.dtype != record.storage:
            found = f"{len(shard.rows)} rows of {shard.rows.dtype}"
            wanted = f"{each.rows} of {record.storage}"
            raise _damaged(shard.path, f"{found}, {wanted} wanted")
    return shards


def shard_path(folder: Path, name: str) -> Path:
    """Return the file of a shard."""
    return folder / SHARDS / f"{name}.safetensors"


def open_shard(path: Path, sha256: str = "") -> Shard:
    """Map a shard; raise SearchError if it is missing or damaged.

    `sha256` is what the index states of it.
    """
    try:
        archive = read_archive(path)
        names = [n for n in _TENSORS if n in archive.tensors or n not in _LATER]
        arrays = {name: archive.tensors[name].read() for name in names}
        stated = archive.metadata["checksum"]
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    except KeyError as error:
        raise _damaged(path, f"no {error}") from error
    right = all(str(array.dtype) in _TENSORS[name] for name, array in arrays.items())
    right &= all(a.ndim == 1 + (n in ("rows", "digests")) for n, a in arrays.items())
    lengths = {len(array) for name, array in arrays.items() if name != "names"}
    if not right or len(lengths) > 1 or 0 in lengths:
        raise _damaged(path, "its tensors do not fit each other")
    count = len(arrays["rows"])
    arrays.setdefault("ctimes", np.zeros(count, np.int64))
    arrays.setdefault("digests", np.zeros((count, _DIGEST_BYTES), np.uint8))
    if arrays["digests"].shape[1] != _DIGEST_BYTES:
        raise _damaged(path, "its digests are of another kind")
    if not _parted(arrays["ends"], len(arrays["names"])):
        raise _damaged(path, "its names do not end where they should")
    return Shard(path, **arrays, checksum=stated, tensors=tuple(names), sha256=sha256)


def _parted(ends: Int64[np.ndarray, "g"], total: int) -> bool:
    """Whether these are the ends of texts that were joined to one of that length."""
    return bool(ends[0] >= 0 and (ends[1:] >= ends[:-1]).all() and ends[-1] == total)


def _damaged(path: Path, reason: object) -> SearchError:
    return SearchError(
        f"the shard {path} is missing or damaged ({reason}); index the gallery again "
        "into another folder"
    )


def write_shard(path: Path, part: Part, storage: str) -> str:
    """Write a shard whole under its name, or not at all; return its SHA-256."""
    names = [os.fsencode(stamp.file) for stamp in part.stamps]
    arrays = {
        "rows": np.ascontiguousarray(part.rows, storage),
        "ends": np.cumsum([len(name) for name in names], dtype=np.int64),
        "sizes": np.array([stamp.size for stamp in part.stamps], np.int64),
        "mtimes": np.array([stamp.mtime_ns for stamp in part.stamps], np.int64),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "ctimes": np.array([stamp.ctime_ns for stamp in part.stamps], np.int64),
        "digests": _digests(part.stamps),
    }
    header: dict[str, Any] = {"__metadata__": {"checksum": checksum(arrays.values())}}
    end = 0
    for name, array in arrays.items():
        kind, place = _TYPES[str(array.dtype)], (end, end := end + array.nbytes)
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": place}
    text = json.dumps(header).encode()
    # safetensors' own writer aligns the data to 8 bytes and sorts the tensors.
    text += b" " * (-(8 + len(text)) % _ALIGNED)
    head = struct.pack("<Q", len(text)) + text
    digest = hashlib.sha256()
    with files.replacing(path) as draft, draft.open("wb") as stream:
        for piece in (head, *map(_bytes, arrays.values())):
            digest.update(piece)
            stream.write(piece)
    return digest.hexdigest()


def _bytes(array: np.ndarray) -> UInt8[np.ndarray, "bytes"]:
    return array.reshape(-1).view(np.uint8)


def _digests(stamps: Sequence[Stamp]) -> UInt8[np.ndarray, "g 32"]:
    joined = b"".join(stamp.sha256 or bytes(_DIGEST_BYTES) for stamp in stamps)
    return np.frombuffer(joined, np.uint8).reshape(len(stamps), _DIGEST_BYTES)


def packed(parts: Iterator[Part], rows: int) -> Iterator[Part]:
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
    """Join parts in order."""
    rows = np.concatenate([part.rows for part in parts if len(part.rows)])
    return Part(rows, tuple(stamp for part in parts for stamp in part.stamps))
