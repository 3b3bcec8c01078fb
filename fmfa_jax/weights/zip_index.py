# SPDX-License-Identifier: Apache-2.0
"""Where the entries of a zip archive lie, read from its table of contents alone.

Python's zipfile builds an object of half a kilobyte for each of up to millions of
entries, and trusts offsets that do not fit a file. PyTorch's archives need neither.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fmfa_jax.weights.tensors import MAX_TENSORS, WeightsError, shown

# A storage each, and what else an archive holds.
MAX_ENTRIES = 2 * MAX_TENSORS
MAX_TABLE_BYTES = 8 * 2**20
_END, _END_64, _PLACE_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_RECORD, _HEADER = b"PK\x01\x02", b"PK\x03\x04"
# Sizes and offsets that do not fit 32 bits stand in an extra field of this kind.
_EXTRA_64 = 1
_FULL = 2**32 - 1


@dataclass(frozen=True)
class Entry:
    """An entry: its name, and where its bytes are in the file."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Record:
    name: bytes
    flags: int
    method: int
    size: int
    header: int


def read_index(path: Path, wanted: re.Pattern[str]) -> Iterator[Entry]:
    """Yield the entries of an archive, those whose names are not wanted as empty.

    Raises:
        WeightsError: The archive is cut or damaged, compresses an entry that is
            wanted, or has more entries than `MAX_ENTRIES`.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        for record in _records(_table(stream, size)):
            name = record.name.decode("utf-8", "backslashreplace")
            if wanted.fullmatch(name):
                yield _entry(stream, size, name, record)
            else:
                yield Entry(name, 0, 0)


def _damaged(why: str) -> WeightsError:
    return WeightsError(
        f"the zip archive is truncated or damaged ({why}); download it again"
    )


def _table(stream: BinaryIO, file_size: int) -> bytes:
    """Return the table of contents, which the end of the file points to."""
    start = max(0, file_size - 22 - 2**16)
    stream.seek(start)
    tail = stream.read()
    place = tail.rfind(_END)
    if place < 0 or len(tail) - place < 22:
        raise _damaged("its end is missing")
    count, length, offset = struct.unpack_from("<HLL", tail, place + 10)
    if tail[max(0, place - 20) : place].startswith(_PLACE_64):
        count, length, offset = _end_64(stream, tail[place - 20 : place], file_size)
    if count > MAX_ENTRIES or length > MAX_TABLE_BYTES:
        raise WeightsError(
            f"the zip archive lists {count} entries in {length} bytes; the limits are "
            f"{MAX_ENTRIES} and {MAX_TABLE_BYTES}"
        )
    if offset + length > file_size:
        raise _damaged("its table of contents lies beyond its end")
    stream.seek(offset)
    return stream.read(length)


def _end_64(stream: BinaryIO, locator: bytes, file_size: int) -> tuple[int, int, int]:
    """Return count, length and offset of the table of a large archive."""
    (offset,) = struct.unpack_from("<Q", locator, 8)
    if offset + 56 > file_size:
        raise _damaged("its end lies beyond the file's")
    stream.seek(offset)
    record = stream.read(56)
    if not record.startswith(_END_64):
        raise _damaged("its end is not where it says")
    return struct.unpack_from("<QQQ", record, 32)


def _records(table: bytes) -> Iterator[_Record]:
    place = 0
    while place < len(table):
        if table[place : place + 4] != _RECORD or place + 46 > len(table):
            raise _damaged("its table of contents has no entry where one should be")
        flags, method = struct.unpack_from("<HH", table, place + 8)
        packed, size, names, extras, comment = struct.unpack_from(
            "<LLHHH", table, place + 20
        )
        (header,) = struct.unpack_from("<L", table, place + 42)
        start = place + 46
        end = start + names + extras + comment
        extra = table[start + names : start + names + extras]
        if end > len(table):
            raise _damaged("an entry of its table of contents is cut")
        size, _, header = _wide(extra, size, packed, header)
        yield _Record(table[start : start + names], flags, method, size, header)
        place = end


def _wide(extra: bytes, *numbers: int) -> tuple[int, ...]:
    """Replace numbers that are marked as too large by those of the extra field."""
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        if kind == _EXTRA_64:
            values = extra[place + 4 : place + 4 + length]
            count = len(values) // 8  # fewer than it says where the field is cut
            wide = iter(struct.unpack_from(f"<{count}Q", values))
            return tuple(next(wide, n) if n == _FULL else n for n in numbers)
        place += 4 + length
    return numbers


def _entry(stream: BinaryIO, file_size: int, name: str, record: _Record) -> Entry:
    """Locate an entry's bytes behind its own header."""
    if record.method or record.flags & 1:
        raise WeightsError(
            f"entry {shown(name)} is compressed or encrypted; PyTorch stores tensors "
            "uncompressed. Unpack it, or save the file with torch.save"
        )
    if record.header + 30 > file_size:
        raise _damaged(f"entry {shown(name)} reaches beyond the end of the file")
    stream.seek(record.header)
    header = stream.read(30)
    if header[:4] != _HEADER:
        raise WeightsError(f"entry {shown(name)} has no header where it should be")
    names, extras = struct.unpack_from("<HH", header, 26)
    offset = record.header + 30 + names + extras
    if offset + record.size > file_size:
        raise WeightsError(
            f"entry {shown(name)} reaches beyond the end of the file; it is damaged"
        )
    return Entry(name, offset, record.size)
