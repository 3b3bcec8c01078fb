# SPDX-License-Identifier: Apache-2.0
"""Pictures that training could not read: counted, listed and limited."""

import logging
import threading
from dataclasses import dataclass

from data_pipeline.hints import printable

SHARE = 0.01
"""Largest tolerated share of unreadable pictures among those seen."""

FEW = 9
"""So many unreadable pictures are tolerated whatever their share: one damaged file in
the first batch, or in a small data set, is no reason to end a run."""


class TooManyBadImagesError(RuntimeError):
    """More than the tolerated share of the pictures is unreadable."""


@dataclass(frozen=True)
class BadImage:
    """A picture that could not be read, and why."""

    path: str
    reason: str


class BadImages:
    """Collects unreadable pictures; shared by the loader's threads and its caller."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._bad: dict[str, BadImage] = {}

    @property
    def entries(self) -> tuple[BadImage, ...]:
        """The unreadable pictures so far, each listed once, sorted by path."""
        with self._lock:
            return tuple(sorted(self._bad.values(), key=lambda bad: bad.path))

    @property
    def seen(self) -> int:
        """The number of distinct pictures requested so far."""
        return len(self._seen)

    def see(self, *paths: str) -> None:
        """Record that pictures were requested, readable or not."""
        self._seen.update(paths)

    def add(self, path: str, reason: str, *, images: int) -> None:
        """Record an unreadable picture.

        Args:
            path: The picture's file.
            reason: Why it cannot be read.
            images: Number of pictures in the split.

        Raises:
            TooManyBadImagesError: If at least 10 pictures, and more than 1 % of those
                seen, are unreadable.
        """
        path, reason = printable(path), printable(" ".join(reason.split()))
        with self._lock:
            known = path in self._bad
            self._bad.setdefault(path, BadImage(path, reason))
            bad, seen = len(self._bad), len(self._seen)
        if known:
            return
        logging.getLogger(__name__).warning(
            "unreadable picture %s, replaced by another: %s", path, reason
        )
        if bad > max(FEW, SHARE * seen):
            raise TooManyBadImagesError(
                f"{bad} unreadable pictures among {seen} seen, of {images} in all: "
                f"more than {FEW}, and than {SHARE:.0%}; repair or remove them. The "
                f"last one: {path}: {reason}"
            )
