# SPDX-License-Identifier: Apache-2.0
"""Decoded pictures in one file, which all processes and later runs of a host share.

The file holds a tag for each picture, then the pixels. A tag is the checksum of the
pixels and of the picture's stamp (`Split.stamp`), which changes with its file; 0 means
that the picture is not there.

- A process serves a picture once it has computed the tag itself, from these pixels, and
  for as long as the tag stays the same. What a killed process or a power failure left
  behind does not match its tag, nor does a picture whose file has changed since: it is
  decoded again.
- Processes take turns to write, under a lock that ends with the process. None waits for
  another to decode: what is not there yet, each decodes for itself.
"""

import fcntl
import hashlib
import json
import math
import mmap
import os
import shutil
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL
from jaxtyping import Bool, Int, UInt8
from PIL import features

from data_pipeline import images, room
from data_pipeline.records import Split

_TAG = np.dtype("<u4")


def file_name(split: Split, image_size: tuple[int, int]) -> str:
    """Return the file's name, which tells apart whatever changes all pictures."""
    height, width = image_size
    pixels = (images.VERSION, PIL.__version__, features.version("libjpeg_turbo"))
    paths = [image.path for image in split.images]
    made_of = json.dumps([*pixels, *image_size, *paths]).encode("ascii")
    digest = hashlib.sha256(made_of).hexdigest()[:16]
    return f"{split.name}-{len(paths)}x{height}x{width}-{digest}.uint8"


class DiskCache:
    """Pictures of one split at one (height, width), kept in a file; thread-safe.

    Attributes:
        where: Path of the file.
    """

    def __init__(self, folder: Path, split: Split, image_size: tuple[int, int]) -> None:
        """Open the split's file in `folder`, or lay it out.

        Raises:
            OSError: If the file cannot be written, or the disk is full.
        """
        path = folder / file_name(split, image_size)
        self.where = str(path)
        self._split = split
        self._one_writes = threading.Lock()  # threads share the lock of the file
        shape = (len(split.images), *image_size, 3)
        self._tag_bytes = shape[0] * _TAG.itemsize
        size = self._tag_bytes + math.prod(shape)
        self._file = _opened(path)
        weakref.finalize(self, os.close, self._file)
        with _alone(self._file):
            _reserve(self._file, folder, size, shape[0])
        mapped = mmap.mmap(self._file, size, access=mmap.ACCESS_READ)
        self._tags = np.frombuffer(mapped, _TAG, shape[0])
        pixels = np.frombuffer(mapped, np.uint8, offset=self._tag_bytes)
        self._pixels = pixels.reshape(shape)
        self._checked = np.zeros(shape[:1], _TAG)

    def __len__(self) -> int:
        """Return how many pictures are there, of whatever version."""
        return int(np.count_nonzero(self._tags))

    def take(
        self, indices: Int[np.ndarray, "r"], out: UInt8[np.ndarray, "r h w 3"]
    ) -> Int[np.ndarray, "m"]:
        """Copy pictures to `out`; return the rows of those that are not cached."""
        there = self._tags[indices] != 0
        copy_rows(self._pixels, indices, there, out)
        # Read again after the copy: whoever replaces pixels removes their tag first.
        tags = self._tags[indices]
        sound = there & (tags != 0) & (tags == self._checked[indices])
        for row in np.flatnonzero(there & ~sound):
            sound[row] = self._check(int(indices[row]), out[row])
        return np.flatnonzero(~sound)

    def _check(self, index: int, pixels: UInt8[np.ndarray, "h w 3"]) -> bool:
        """Return whether these are the pixels of the picture as its file is now."""
        try:
            tag = _tag(self._split.stamp(index), pixels)
        except OSError:
            return False  # reading it tells what is wrong
        self._checked[index] = tag
        return bool(tag == self._tags[index])

    def add(
        self, index: int, decode: Callable[[], UInt8[np.ndarray, "h w 3"]]
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Decode a picture, store and return it.

        Raises:
            RuntimeError: If it cannot be stored; not an OSError, by which a picture is
                known to be unreadable.
        """
        stamp = self._split.stamp(index)  # first, lest the file change in between
        pixels = decode()
        tag = _tag(stamp, pixels)
        try:
            with self._one_writes, _alone(self._file):
                self._write(index * _TAG.itemsize, np.zeros(1, _TAG))
                self._write(self._tag_bytes + index * pixels.nbytes, pixels)
                self._write(index * _TAG.itemsize, np.array([tag], _TAG))
        except OSError as error:
            raise RuntimeError(
                f"the cache {self.where} cannot be written: {error}. Choose another "
                "config.data.cache, or a folder in config.data.cache_dir"
            ) from error
        self._checked[index] = tag
        return pixels

    def _write(self, offset: int, values: np.ndarray) -> None:
        written = os.pwrite(self._file, values, offset)
        if written != values.nbytes:
            raise OSError(f"only {written} of {values.nbytes} bytes were written")


def copy_rows(
    table: UInt8[np.ndarray, "g h w 3"],
    indices: Int[np.ndarray, "r"],
    wanted: Bool[np.ndarray, "r"],
    out: UInt8[np.ndarray, "r h w 3"],
) -> None:
    """Copy the wanted rows of `out` from a table."""
    if wanted.all():
        # In the default mode, `take` goes through a buffer.
        np.take(table, indices, axis=0, out=out, mode="clip")
    else:
        out[wanted] = table[indices[wanted]]


def _tag(stamp: str, pixels: UInt8[np.ndarray, "h w 3"]) -> int:
    return zlib.crc32(pixels, zlib.crc32(stamp.encode("ascii"))) or 1


def _opened(path: Path) -> int:
    """Return the descriptor of a file for its owner alone, made if need be."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(path, flags, 0o600)


def _reserve(file: int, folder: Path, size: int, images: int) -> None:
    """Give a file all its blocks, so that a full disk fails here."""
    known = os.fstat(file)
    # Too short as well if its first process was killed, or if somebody cut it off:
    # which pictures are left, the tags tell.
    if known.st_size < size:
        free = shutil.disk_usage(folder).free
        missing = size - 512 * known.st_blocks
        room.check(images, missing, free=free)
        os.posix_fallocate(file, 0, size)


@contextmanager
def _alone(file: int) -> Iterator[None]:
    """Keep other processes from writing."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
