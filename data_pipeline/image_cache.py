# SPDX-License-Identifier: Apache-2.0
"""Decoded and resized pictures kept in memory or on disk for the length of a run."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

CACHES = ("none", "memory", "disk")

SHARE_OF_FREE = 0.9
"""A cache takes at most this share of the free memory or disk."""

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


class ImageCache:
    """A table of pictures, filled as they are first read; safe to share by threads."""

    def __init__(self, pictures: UInt8[np.ndarray, "g h w 3"]) -> None:
        self._pictures = pictures
        self._filled = np.zeros(len(pictures), dtype=bool)

    def get(self, index: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """Return the picture, or None where it was not put yet."""
        return self._pictures[index] if self._filled[index] else None

    def put(self, index: int, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Keep a picture."""
        self._pictures[index] = pixels
        self._filled[index] = True


def open_cache(
    kind: str,
    *,
    images: int,
    image_size: tuple[int, int],
    folder: str | None = None,
) -> ImageCache | None:
    """Make an empty cache and log its size; None for the kind "none".

    Args:
        kind: "none", "memory", or "disk": a file without a name, which is gone when the
            process ends, however it ends.
        images: pictures to hold.
        image_size: (height, width) of each.
        folder: where the disk cache lies; None for the system's temporary folder.

    Raises:
        ValueError: no such kind.
        OSError: the cache does not fit; the message has both sizes.
    """
    if kind not in CACHES:
        raise ValueError(f"cache {kind!r}: wanted one of {', '.join(CACHES)}")
    if kind == "none":
        return None
    shape = (images, *image_size, 3)
    size = images * image_size[0] * image_size[1] * 3
    where = "memory" if kind == "memory" else folder or tempfile.gettempdir()
    free = free_memory() if kind == "memory" else shutil.disk_usage(where).free
    if size > SHARE_OF_FREE * free:
        raise OSError(
            f"the {kind} cache of {images} decoded pictures wants {_gigabytes(size)}, "
            f"{where} has {_gigabytes(free)} free, of which it may take "
            f"{SHARE_OF_FREE:.0%}: choose another cache ({', '.join(CACHES)}) or place"
        )
    logging.getLogger(__name__).info(
        "cache of %d decoded pictures: up to %s in %s, %s free",
        *(images, _gigabytes(size), where, _gigabytes(free)),
    )
    if kind == "memory":
        return ImageCache(np.zeros(shape, np.uint8))
    return ImageCache(_file_array(shape, size, where))


def free_memory() -> int:
    """Return the bytes of memory that this process may still take."""
    amounts = [_available()]
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        amounts.append(limit - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no such control group, or its limit is "max": only the host's counts
    return max(0, min(amounts))


def _available() -> int:
    """Return the host's free memory; the kernel counts what it can reclaim."""
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _file_array(shape: tuple[int, ...], size: int, folder: str) -> np.ndarray:
    """Map a nameless file whose blocks are reserved: a full disk must fail here."""
    with tempfile.TemporaryFile(dir=folder) as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, np.uint8, mode="r+", shape=shape)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
