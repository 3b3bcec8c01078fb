# SPDX-License-Identifier: Apache-2.0
"""The pictures of a folder: found by name, read by several threads, kept in order."""

import hashlib
import os
import stat
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_pipeline.images import SUFFIXES, ImageError, decode_resized
from data_pipeline.prefetch import cores
from data_pipeline.regular import read_regular
from fmfa_jax.search.shards import Stamp
from fmfa_jax.search.store import BadFile, SearchError


@dataclass(frozen=True)
class Skipped:
    """A folder that was not entered, and why."""

    folder: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """The sorted pictures of a gallery, the number of its other files, and the rest."""

    pictures: tuple[Stamp, ...]
    others: int
    skipped: tuple[Skipped, ...] = ()


def list_gallery(
    gallery: Path,
    below: Sequence[str] = ("",),
    *,
    leave: Path | None = None,
    follow_links: bool = False,
) -> Listing:
    """List the pictures of a folder and its subfolders, sorted by name.

    Args:
        gallery: The folder; hidden files and folders in it are skipped.
        below: Files and folders to list, relative to the gallery.
        leave: A folder that is not part of the gallery: the index.
        follow_links: Whether to enter links to folders of the gallery.
    """
    found: dict[str, Stamp] = {}
    others, walk = 0, _Walk(gallery, leave, follow_links)
    for name in below:
        path = gallery / name
        if not path.exists():
            raise SearchError(f"no file or folder {name!r} in the gallery {gallery}")
        for file in walk.files(path):
            if file.suffix.lower() in SUFFIXES:
                stamp = _stamp(gallery, file.relative_to(gallery).as_posix())
                found[stamp.file] = stamp
            else:
                others += 1
    pictures = tuple(found[file] for file in sorted(found))
    return Listing(pictures, others, tuple(walk.skipped))


class _Walk:
    """Finds the files below folders; what it cannot or may not enter is `skipped`."""

    def __init__(self, root: Path, leave: Path | None, follow: bool) -> None:
        self.skipped: list[Skipped] = []
        self._root, self._leave, self._follow = root.resolve(), leave, follow
        self._top, self._linked = root, set[Path]()

    def files(self, path: Path) -> Iterator[Path]:
        """Yield the files below a path, or the path itself."""
        folders = [path] if path.is_dir() else []
        if not folders:
            yield path
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    visible = [each for each in entries if each.name[0] != "."]
                # Which of two links to a folder is followed must not hang on the disk.
                visible.sort(key=lambda each: each.name)
            except OSError as error:
                self._skip(folder, error.strerror or str(error))
                continue
            for entry in visible:
                link, path = entry.is_symlink(), folder / entry.name
                # A dangling link is told as a file.
                if not (os.path.isdir(path) if link else entry.is_dir()):
                    yield path
                elif self._enters(path, link):
                    folders.append(path)

    def _enters(self, folder: Path, link: bool) -> bool:
        real = folder.resolve()
        if real == self._leave:
            return False
        reason = self._refusal(folder, real) if link else ""
        if reason:
            self._skip(folder, reason)
        elif link:
            self._linked.add(real)
        return not reason

    def _refusal(self, link: Path, real: Path) -> str:
        """Say why a link is not followed; "" if it is.

        Each folder is entered through one link at most, which bounds the walk.
        """
        if not real.is_relative_to(self._root):
            return "a link that leads out of the gallery; index where it lies"
        if not self._follow:
            return "a link to a folder of the gallery; --follow-links enters it"
        if link.parent.resolve().is_relative_to(real):
            return "a link to a folder that it lies in"
        return "another link leads to the same folder" * (real in self._linked)

    def _skip(self, folder: Path, reason: str) -> None:
        name = folder.relative_to(self._top).as_posix()
        self.skipped.append(Skipped(name, reason))


def _stamp(gallery: Path, file: str) -> Stamp:
    try:
        status = (gallery / file).stat()
    except OSError:
        return Stamp(file, 0, 0)  # a dangling link
    return Stamp(file, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def unchanged(then: Stamp | BadFile | None, now: Stamp) -> bool:
    """Whether a file is as it was, by its size and times, so far as they are known.

    The time of the inode tells files apart that change places and keep their own time.
    """
    return (
        then is not None
        and (then.size, then.mtime_ns) == (now.size, now.mtime_ns)
        and then.ctime_ns in (0, now.ctime_ns)
    )


def read_file(gallery: Path, file: str) -> bytes:
    """Return the content of a gallery's file.

    Raises:
        SearchError: The name or a link in it leads out of the gallery.
        OSError: It does not exist, cannot be read, or is not a regular file.
    """
    path = (gallery / file).resolve()
    if not path.is_relative_to(gallery.resolve()):
        raise SearchError(f"{file} leads out of the gallery; index where it lies")
    return read_regular(path)


@dataclass(frozen=True)
class Picture:
    """A file's content, if it is a picture.

    `pixels` is None if the content is known.
    """

    stamp: Stamp
    pixels: UInt8[np.ndarray, "h w 3"] | None


def read_pictures(
    gallery: Path,
    stamps: Iterable[Stamp],
    image_size: tuple[int, int],
    *,
    ahead: int,
    known: Container[bytes] = (),
) -> Iterator[Picture | BadFile]:
    """Yield what each file holds, or why that is no picture, in order.

    Args:
        gallery: The folder.
        stamps: Its files.
        image_size: Height and width of the pixels.
        ahead: Files that are read ahead.
        known: SHA-256 of contents whose pixels are not wanted.
    """
    with ThreadPoolExecutor(cores()) as pool:
        reads = (pool.submit(_read, gallery, s, image_size, known) for s in stamps)
        waiting = deque(islice(reads, ahead))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(islice(reads, 1))


def _read(
    gallery: Path, stamp: Stamp, image_size: tuple[int, int], known: Container[bytes]
) -> Picture | BadFile:
    try:
        encoded = read_file(gallery, stamp.file)
        stamp = replace(stamp, sha256=hashlib.sha256(encoded).digest())
        if stamp.sha256 in known:
            return Picture(stamp, None)
        return Picture(stamp, decode_resized(encoded, image_size))
    except (ImageError, OSError, SearchError) as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        times = stamp.mtime_ns, reason, stamp.ctime_ns
        return BadFile(stamp.file, stamp.size, *times)


def is_gone(gallery: Path, file: str) -> bool:
    """Whether a file is no longer there; one that cannot be reached is not gone."""
    try:
        return not stat.S_ISREG((gallery / file).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def relative_name(gallery: Path, path: str | Path) -> str:
    """Return a path, absolute or relative to the gallery, as a name in the gallery."""
    whole = Path(os.path.normpath(gallery / path))
    if not whole.is_relative_to(gallery):
        raise SearchError(f"{path} is not in the gallery {gallery}")
    name = whole.relative_to(gallery).as_posix()
    return "" if name == "." else name


def is_below(file: str, names: Sequence[str]) -> bool:
    """Whether a file or folder is one of the names, or lies below one."""
    return any(not n or file == n or file.startswith(f"{n}/") for n in names)
