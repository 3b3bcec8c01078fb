# SPDX-License-Identifier: Apache-2.0
"""A cache of decoded and resized pictures, in memory or on disk, for a single run."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_pipeline import hints

CACHES = ("none", "memory", "disk")
"""The kinds of cache."""

SHARE_OF_FREE = 0.9
"""Largest share of the free memory or disk space that a cache may take."""

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


class ImageCache:
    """A table of pictures, filled in as they are first read; thread-safe."""

    def __init__(self, pictures: UInt8[np.ndarray, "g h w 3"]) -> None:
        self._pictures = pictures
        self._filled = np.zeros(len(pictures), dtype=bool)

    def get(self, index: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """Return the picture, or None if it is not cached yet."""
        return self._pictures[index] if self._filled[index] else None

    def put(self, index: int, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Store a picture."""
        self._pictures[index] = pixels
        self._filled[index] = True


def open_cache(
    kind: str,
    *,
    images: int,
    image_size: tuple[int, int],
    folder: str | None = None,
) -> ImageCache | None:
    """Create an empty cache and log its size; return None for the kind "none".

    Args:
        kind: One of `CACHES`. "disk" is an unnamed file, which disappears with the
            process, however that ends.
        images: Number of pictures to hold.
        image_size: (height, width) of each picture.
        folder: Folder of the disk cache; None for the system's temporary folder.

    Raises:
        ValueError: If the kind is unknown.
        OSError: If the cache does not fit; the message states both sizes.
    """
    if kind not in CACHES:
        raise ValueError(hints.unknown("cache", kind, CACHES))
    if kind == "none":
        return None
    shape = (images, *image_size, 3)
    size = images * image_size[0] * image_size[1] * 3
    where = "memory" if kind == "memory" else folder or tempfile.gettempdir()
    free = free_memory() if kind == "memory" else shutil.disk_usage(where).free
    if size > SHARE_OF_FREE * free:
        raise OSError(
            f"the {kind} cache of {images} decoded pictures needs {_gigabytes(size)}, "
            f"but {where} has {_gigabytes(free)} free, of which it may take "
            f"{SHARE_OF_FREE:.0%}: choose another cache ({', '.join(CACHES)}) or folder"
        )
    logging.getLogger(__name__).info(
        "cache of %d decoded pictures: up to %s in %s, %s free",
        *(images, _gigabytes(size), where, _gigabytes(free)),
    )
    if kind == "memory":
        return ImageCache(np.zeros(shape, np.uint8))
    return ImageCache(_file_array(shape, size, where))


def free_memory() -> int:
    """Return how many more bytes of memory this process may take."""
    amounts = [_available()]
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        amounts.append(limit - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no control group, or a limit of "max": only the host's memory counts
    return max(0, min(amounts))


def _available() -> int:
    """Return the host's free memory, including what the kernel can reclaim."""
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _file_array(shape: tuple[int, ...], size: int, folder: str) -> np.ndarray:
    """Map an unnamed file with its blocks reserved, so that a full disk fails here."""
    with tempfile.TemporaryFile(dir=folder) as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, np.uint8, mode="r+", shape=shape)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
