# SPDX-License-Identifier: Apache-2.0
"""Pictures: content -> message."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.images import ImageError, load
from data_pipeline.regular import read_regular
from tests.bad_inputs.table import Reader


def encoded(form: str, size: tuple[int, int] = (8, 16)) -> bytes:
    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, form)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    end = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + end


def png(width: int, height: int, data: bytes = b"", depth: int = 8) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    rest = chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rest


JPEG, PNG = encoded("JPEG", (64, 64)), encoded("PNG")
ROWS = [
    (b"", "0 bytes that are no picture: wanted JPEG, PNG"),
    (b"\xff", "1 bytes that are no picture"),
    (b"hello", "5 bytes that are no picture"),
    (b"<html>", "no picture but a web page"),
    (b"<!DOCTYPE html>", "no picture but a web page"),
    (b"version https://git-lfs.github.com/spec/v1\n", "but a pointer of Git LFS"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "that are no picture"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "that are no picture"),
    (b"%PDF-1.4\n", "that are no picture"),
    (b"GIF89a/*" + bytes(50), "58 bytes that are no picture"),
    (b"BM" + b"\xff" * 60, "cannot be decoded (62 bytes)"),
    (
        b"P6 99999 99999 255\n",
        "more than 64000000 pixels: Image size",
    ),
    (b"P3 2 2 255\n" + b"9" * 5000, "Token too long found in data"),
    (JPEG[:20], "20 bytes that are no picture"),
    (JPEG[: len(JPEG) // 2], "cannot be decoded"),
    (b"\xff\xd8" + b"\xff" * 10**5, "100002 bytes that are no picture"),
    (b"\xff\xd8" + b"\xff\xe0\x00\x02" * 10**4, "40002 bytes that are no picture"),
    (PNG[:20], "cannot be decoded (20 bytes)"),
    (PNG[: len(PNG) // 2], "cannot be decoded"),
    (png(0, 0), "65 bytes that are no picture"),
    (png(8, 8), "cannot be decoded"),
    (png(8, 8, depth=3), "65 bytes that are no picture"),
    (png(8_000, 9_000), "declares 8000 x 9000 = 72000000 pixels, wanted at most"),
    (png(2**31 - 1, 2**31 - 1), "pixels"),
    (encoded("WEBP")[:40], "cannot be decoded (40 bytes)"),
    (encoded("TIFF")[:40], "40 bytes"),
    (encoded("BMP")[:60], "cannot be decoded"),
    (encoded("AVIF")[:60], "60 bytes that are no picture"),
]


def read(folder: Path, content: bytes) -> object:
    (folder / "1.jpg").write_bytes(content)
    return load(folder / "1.jpg", (16, 8))


def other(folder: Path, kind: str) -> object:
    path = folder / "1.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "large":
        path.write_bytes(b"12345")
    else:
        path.symlink_to(kind)
    return read_regular(path, largest=4)


FILES = [
    ("pipe", "a pipe, device or folder, no regular file"),
    ("folder", "a pipe, device or folder, no regular file"),
    ("/dev/zero", "a pipe, device or folder, no regular file"),
    ("/dev/null", "a pipe, device or folder, no regular file"),
    ("loop", "Too many levels of symbolic links"),
    ("none", "No such file"),
    ("large", "wanted at most 4 bytes, got more"),
]

READERS = [
    Reader("pictures", read, ImageError, ROWS),
    Reader("files", other, OSError, FILES),
]
