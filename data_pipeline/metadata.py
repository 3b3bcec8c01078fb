# SPDX-License-Identifier: Apache-2.0
"""Pictures without their metadata, which may be damaged while the pixels are not."""

import struct
import zlib
from collections.abc import Iterator

from data_pipeline import jpeg

_PNG = b"\x89PNG\r\n\x1a\n"
_TRANSPARENCY, _USEFUL = (b"tRNS",), (b"eXIf", b"iCCP")


def without_metadata(encoded: bytes) -> Iterator[bytes]:
    """Yield the picture with ever less metadata: first orientation and profile stay.

    Nothing is yielded for formats other than JPEG and PNG.
    """
    if encoded.startswith(jpeg.START):
        yield from jpeg.without_metadata(encoded)
    elif encoded.startswith(_PNG):
        yield _chunks(encoded, _TRANSPARENCY + _USEFUL)
        yield _chunks(encoded, _TRANSPARENCY)


def _chunks(encoded: bytes, kept: tuple[bytes, ...]) -> bytes:
    """Return a PNG with its critical chunks and the sound ones of the kinds `kept`."""
    parts = [_PNG]
    place = len(_PNG)
    while place + 8 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, place)
        chunk = encoded[place : place + length + 12]
        critical = not kind[0] & 0x20
        if critical or (kind in kept and _is_sound(chunk)):
            parts.append(chunk)
        place += length + 12
    return b"".join(parts)


def _is_sound(chunk: bytes) -> bool:
    return chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
