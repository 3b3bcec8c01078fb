# SPDX-License-Identifier: Apache-2.0
"""The pictures that training could not read: counted, listed, and limited."""

import logging
import threading
from dataclasses import dataclass

SHARE = 0.01
"""The largest share of unreadable pictures among those seen; above it is an error."""

GRACE = 1000
"""The share is taken of at least so many pictures (or all, if fewer): one damaged file
in the first batch is not yet 1 % of a data set."""


class TooManyBadImagesError(RuntimeError):
    """More than the allowed share of the pictures cannot be read."""


@dataclass(frozen=True)
class BadImage:
    """A picture that could not be read, and why."""

    path: str
    reason: str


class BadImages:
    """Collects unreadable pictures; shared by the loader's threads and its user."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._bad: dict[str, BadImage] = {}

    @property
    def entries(self) -> tuple[BadImage, ...]:
        """The unreadable pictures so far, each once, by path."""
        with self._lock:
            return tuple(sorted(self._bad.values(), key=lambda bad: bad.path))

    @property
    def seen(self) -> int:
        """The number of different pictures that were asked for so far."""
        return len(self._seen)

    def see(self, path: str) -> None:
        """Note that a picture was asked for, readable or not."""
        self._seen.add(path)

    def add(self, path: str, reason: str, *, images: int) -> None:
        """List an unreadable picture.

        Args:
            path: the picture.
            reason: why it cannot be read.
            images: how many pictures the split has.

        Raises:
            TooManyBadImagesError: they are now more than 1 % of the pictures seen.
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
                f"more than {SHARE:.0%} of {of}; mend or remove them. The last: "
                f"{path}: {reason}"
            )
