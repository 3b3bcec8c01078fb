# SPDX-License-Identifier: Apache-2.0
"""JPEG files as rows of segments: to drop metadata, or to supply a missing end."""

import random
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

START, END = b"\xff\xd8", b"\xff\xd9"
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, Huffman coded
_SCAN, _COMMENT = 0xDA, 0xFE
_RESTARTS = range(0xD0, 0xD8)
_APPLICATION = range(0xE0, 0xF0)
_CODING = (0xE0, 0xEE)
"""APP0 and APP14 say how colours are coded."""
_USEFUL = (0xE1, 0xE2)
"""APP1 has EXIF with the orientation, APP2 the colour profile."""
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_TAILS, _TAIL_BYTES = 10, 64


@dataclass(frozen=True)
class Segment:
    """A marker segment: file[start:stop], without the coded pixels that may follow."""

    kind: int
    start: int
    stop: int


def segments(encoded: bytes) -> Iterator[Segment]:
    """Yield the whole marker segments of a file, from the second marker to the last."""
    place = len(START)
    while (place := _next_marker(encoded, place)) + 4 <= len(encoded):
        kind, length = struct.unpack_from(">BH", encoded, place + 1)
        if kind == END[1] or place + 2 + length > len(encoded):
            return
        yield Segment(kind, place, place + 2 + length)
        place += 2 + length


def without_metadata(encoded: bytes) -> Iterator[bytes]:
    """Yield the file with ever less metadata: at first orientation and profile stay."""
    for kept in (_CODING + _USEFUL, _CODING):
        parts, place = [], 0
        for each in segments(encoded):
            extra = each.kind in _APPLICATION or each.kind == _COMMENT
            if extra and each.kind not in kept:
                parts.append(encoded[place : each.start])
                place = each.stop
        yield b"".join([*parts, encoded[place:]])


def endings(encoded: bytes) -> Iterator[bytes]:
    """Yield the file with different ends, if no scan is missing altogether.

    Where coded pixels are missing, a decoder takes what follows for them. All of these
    files therefore decode to the same picture only if none is.
    """
    if not _has_all_scans(encoded):
        return
    for seed in range(_TAILS):
        draw = random.Random(seed)
        noise = [bytes(draw.choices(range(255), k=_TAIL_BYTES)) for _ in range(17)]
        # A file with restart markers waits for the next one, whichever that is.
        marks = [bytes([0xFF, _RESTARTS[(seed + i) % 8]]) for i in range(16)]
        restarts = b"".join(
            mark + each for mark, each in zip(marks, noise[1:], strict=True)
        )
        yield encoded.rstrip(b"\xff") + noise[0] + restarts + END


def _next_marker(encoded: bytes, place: int) -> int:
    """Return where the next marker is that is no restart and no stuffed byte."""
    found = _MARKER.search(encoded, place)
    return found.start() if found else len(encoded)


def _has_all_scans(encoded: bytes) -> bool:
    """Return whether scans bring all coefficients of all components to the last bit."""
    missing: dict[int, set[int]] = {}
    for each in segments(encoded):
        body = encoded[each.start + 4 : each.stop]
        if each.kind in _FRAMES and len(body) >= 6:
            missing = {number: set(range(64)) for number in body[6::3]}
        elif each.kind == _SCAN and len(body) >= 4:
            first, last, bits = body[-3:]
            for number in body[1:-3:2]:
                if not bits & 0x0F and number in missing:
                    missing[number] -= set(range(first, last + 1))
    return bool(missing) and not any(missing.values())
