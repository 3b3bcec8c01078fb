# SPDX-License-Identifier: Apache-2.0
"""The pictures of a split at one size, and what replaces one that cannot be read."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt8

from data_pipeline import order
from data_pipeline.bad_images import BadImages
from data_pipeline.image_cache import ImageCache
from data_pipeline.images import ImageError, decode_resized
from data_pipeline.records import Split

_ATTEMPTS = 16  # with 1 % unreadable, all of them fail with a probability of 1e-32


@dataclass(frozen=True)
class Pictures:
    """The pictures of a split at one (height, width), cached if there is a cache."""

    split: Split
    image_size: tuple[int, int]
    cache: ImageCache | None

    def take_cached(
        self, indices: Int[np.ndarray, "r"], images: UInt8[np.ndarray, "r h w 3"]
    ) -> Int[np.ndarray, "m"]:
        """Copy the pictures that are cached; return the rows of those that are not."""
        if self.cache is None:
            return np.arange(len(indices))
        return self.cache.take(indices, images)

    def read(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Return picture `index`, decoded and resized.

        Raises:
            ImageError: If the picture cannot be decoded.
            OSError: If its file cannot be read.
        """
        kept = np.empty((1, *self.image_size, 3), np.uint8)
        if not len(self.take_cached(np.array([index]), kept)):
            return kept[0]
        if self.cache is None:
            return self._decoded(index)
        return self.cache.add(index, lambda: self._decoded(index))

    def _decoded(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return decode_resized(self.split.read(index), self.image_size)

    def read_named(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Like `read`, but errors name the file: evaluations replace nothing."""
        try:
            return self.read(index)
        except ImageError as error:
            raise ImageError(
                f"picture {index} of split {self.split.name!r}, "
                f"{self.split.images[index].path}: {error}; an evaluation leaves "
                "nothing out: repair the file or remove it from the annotation"
            ) from error


@dataclass(frozen=True)
class StepPictures:
    """Reads the pictures of one training step, replacing those that are unreadable.

    Attributes:
        pictures: The pictures of the split.
        seed: The run's seed.
        step: The training step.
        batch: Pairs of the global batch, over all processes.
        fitting: Which pairs have a caption short enough for this batch.
        bad_images: Collects the unreadable pictures.
    """

    pictures: Pictures
    seed: int
    step: int
    batch: Int64[np.ndarray, "b"]
    fitting: Bool[np.ndarray, "p"]
    bad_images: BadImages

    def read(
        self, rows: slice, images: UInt8[np.ndarray, "r h w 3"]
    ) -> Int64[np.ndarray, "r"]:
        """Fill `images` with rows of the global batch; return the pairs used.

        Raises:
            ImageError: If no replacement is readable either.
            TooManyBadImagesError: If more than 1 % of the pictures are unreadable.
        """
        taken = self.batch[rows].copy()
        indices = self.pictures.split.pair_images[taken]
        self.bad_images.see(*(self.pictures.split.images[i].path for i in indices))
        for row in self.pictures.take_cached(indices, images):
            taken[row], images[row] = self._first_readable(rows.start + int(row))
        return taken

    def _first_readable(self, row: int) -> tuple[int, UInt8[np.ndarray, "h w 3"]]:
        split = self.pictures.split
        tried = 0
        for candidate in self._candidates(row):
            index = int(split.pair_images[candidate])
            path = split.images[index].path
            self.bad_images.see(path)
            try:
                return candidate, self.pictures.read(index)
            except (ImageError, OSError) as error:
                self.bad_images.add(path, str(error), images=len(split.images))
            tried += 1
        raise ImageError(
            f"step {self.step}, row {row}: neither pair {self.batch[row]} nor any of "
            f"its {tried - 1} possible replacements has a readable picture; the last: "
            f"{path}. Repair the files, or choose a batch smaller than half the pairs"
        )

    def _candidates(self, row: int) -> Iterator[int]:
        """Yield the pair of a row of the global batch, then its replacements in turn.

        No replacement is in the batch already or available to another row, so that each
        pair stays unique (the weak method's memory has one row per pair). Nor is any
        caption longer than the length the batch was cut to.
        """
        yield int(self.batch[row])
        others = order.replacement_ids(
            self.step, row, seed=self.seed, batch=self.batch, usable=self.fitting
        )
        yield from (int(pair) for pair in others[:_ATTEMPTS])
