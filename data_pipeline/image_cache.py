# SPDX-License-Identifier: Apache-2.0
"""Caches of decoded and resized pictures: in memory for one run, or on disk."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from data_pipeline import hints, room
from data_pipeline.disk_cache import DiskCache, copy_rows
from data_pipeline.records import Split

CACHES = ("none", "memory", "disk")
"""The kinds of cache."""


class MemoryCache:
    """Pictures that this process keeps in memory; thread-safe.

    Attributes:
        where: What messages call the place.
    """

    where = "memory"

    def __init__(self, images: int, image_size: tuple[int, int]) -> None:
        """Start empty.

        Raises:
            OSError: If it does not fit.
        """
        size = images * math.prod(image_size) * 3
        room.check(images, size, free=room.free_memory())
        self._pictures = np.zeros((images, *image_size, 3), np.uint8)
        self._filled = np.zeros(images, dtype=bool)

    def __len__(self) -> int:
        """Return how many pictures are there."""
        return int(np.count_nonzero(self._filled))

    def take(
        self, indices: Int[np.ndarray, "r"], out: UInt8[np.ndarray, "r h w 3"]
    ) -> Int[np.ndarray, "m"]:
        """Copy pictures to `out`; return the rows of those that are not cached."""
        filled = self._filled[indices]
        copy_rows(self._pictures, indices, filled, out)
        return np.flatnonzero(~filled)

    def add(
        self, index: int, decode: Callable[[], UInt8[np.ndarray, "h w 3"]]
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Decode a picture, store and return it."""
        self._pictures[index] = pixels = decode()
        self._filled[index] = True
        return pixels


ImageCache = MemoryCache | DiskCache


def open_cache(
    kind: str, split: Split, image_size: tuple[int, int], folder: str | None = None
) -> ImageCache | None:
    """Open a cache and log its size; return None for the kind "none".

    Args:
        kind: One of `CACHES`. "memory" is empty at first and ends with the process;
            "disk" is a file that other processes and later runs share.
        split: The pictures to hold.
        image_size: (height, width) of each picture.
        folder: Folder of the disk cache; None for `user_folder()`.

    Raises:
        ValueError: If the kind is unknown.
        OSError: If the cache does not fit or cannot be written; the message says what
            to change.
    """
    if kind not in CACHES:
        raise ValueError(hints.unknown("cache", kind, CACHES))
    if kind == "none":
        return None
    where = Path(folder) if folder else room.user_folder()
    try:
        if kind == "memory":
            cache = MemoryCache(len(split.images), image_size)
        else:
            cache = DiskCache(where, split, image_size)
    except OSError as error:
        raise type(error)(
            f"the {kind} cache cannot be opened: {error}. Choose another "
            "config.data.cache, or a folder with room in config.data.cache_dir"
        ) from error
    size = room.gigabytes(len(split.images) * math.prod(image_size) * 3)
    logging.getLogger(__name__).info(
        "cache of %d decoded pictures: up to %s in %s, %d of them there",
        *(len(split.images), size, cache.where, len(cache)),
    )
    return cache
