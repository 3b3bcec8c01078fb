# SPDX-License-Identifier: Apache-2.0
"""The pictures of a folder: found by name, read by several threads, kept in order."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
class Listing:
    """The pictures of a gallery, sorted, and the number of its other files."""

    pictures: tuple[Stamp, ...]
    others: int


def list_gallery(
    gallery: Path, below: Sequence[str] = ("",), *, leave: Path | None = None
) -> Listing:
    """List the pictures of a folder and its subfolders, sorted by name.

    Args:
        gallery: The folder; hidden files and folders in it are skipped.
        below: Files and folders to list, relative to the gallery.
        leave: A folder that is not part of the gallery: the index.
    """
    found: dict[str, Stamp] = {}
    others = 0
    for name in below:
        path = gallery / name
        if not path.exists():
            raise SearchError(f"no file or folder {name!r} in the gallery {gallery}")
        for file in _files(path, leave):
            if file.suffix.lower() in SUFFIXES:
                stamp = _stamp(gallery, file.relative_to(gallery).as_posix())
                found[stamp.file] = stamp
            else:
                others += 1
    return Listing(tuple(found[file] for file in sorted(found)), others)


def _files(path: Path, leave: Path | None) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, files in os.walk(path):
        folders[:] = [
            f for f in folders if f[0] != "." and Path(folder, f).resolve() != leave
        ]
        yield from (Path(folder, file) for file in files if file[0] != ".")


def _stamp(gallery: Path, file: str) -> Stamp:
    try:
        status = (gallery / file).stat()
    except OSError:
        return Stamp(file, 0, 0)  # a dangling link
    return Stamp(file, status.st_size, status.st_mtime_ns)


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


Read = tuple[Stamp, UInt8[np.ndarray, "h w 3"] | BadFile]


def read_pictures(
    gallery: Path, stamps: Iterable[Stamp], image_size: tuple[int, int], *, ahead: int
) -> Iterator[Read]:
    """Yield each file with its pixels, or with why there are none, in order.

    The pixels have the height and width `image_size`; `ahead` files are read ahead.
    """
    with ThreadPoolExecutor(cores()) as pool:
        reads = (pool.submit(_read, gallery, stamp, image_size) for stamp in stamps)
        waiting = deque(islice(reads, ahead))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(islice(reads, 1))


def _read(gallery: Path, stamp: Stamp, image_size: tuple[int, int]) -> Read:
    try:
        return stamp, decode_resized(read_file(gallery, stamp.file), image_size)
    except (ImageError, OSError, SearchError) as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        return stamp, BadFile(stamp.file, stamp.size, stamp.mtime_ns, reason)


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
