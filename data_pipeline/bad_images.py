# SPDX-License-Identifier: Apache-2.0
"""Pictures that training could not read: counted, listed and limited."""

import logging
import threading
from dataclasses import dataclass

SHARE = 0.01
"""Largest tolerated share of unreadable pictures among those seen."""

GRACE = 1000
"""The share is taken over at least this many pictures (or all of them, if fewer), so
that one damaged file in the first batch does not count as 1 % of the data set."""


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
            TooManyBadImagesError: If more than 1 % of the pictures seen are unreadable.
        """
        reason = " ".join(reason.split())
        with self._lock:
            known = path in self._bad
            self._bad.setdefault(path, BadImage(path, reason))
            bad, seen = len(self._bad), len(self._seen)
        if known:
            return
        logging.getLogger(__name__).warning(
            "unreadable picture %s, replaced by another: %s", path, reason
        )
        of = max(seen, min(images, GRACE))
        if bad > SHARE * of:
            raise TooManyBadImagesError(
                f"{bad} unreadable pictures among {seen} seen, of {images} in all: "
                f"more than {SHARE:.0%} of {of}; repair or remove them. The last "
                f"one: {path}: {reason}"
            )
