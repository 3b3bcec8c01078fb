# SPDX-License-Identifier: Apache-2.0
"""Local copies of what lies in object stores, for all that is read.

    CACHE/copies/<digest of the URL>/NAME      a file, or a folder with all its files
    CACHE/copies/<digest of the URL>/copied    what is there: a line for each file

Data sets, weights, tokenizers, galleries and indexes are read again and again, seeked
in and mapped into memory, so they are copied to a local disk once, with many requests
in flight. The store is listed at every start: what has another size or version than was
copied is copied anew, and what is gone is removed. A file appears under its name whole,
and counts once its line is written; processes of a host take turns. CACHE is
fmfa_jax in the user's cache folder (XDG_CACHE_HOME, or ~/.cache). Of a run folder the
checkpoints stay where they are.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from data_pipeline import room
from data_pipeline.buckets import Bucket, Entry, scheme
from data_pipeline.hints import printable

_ROUND = 1024  # files between two notes of what is there

_STATE = re.compile("(checkpoints|locks)/")

_log = logging.getLogger(__name__)


def near(path: str, *, what: str) -> str:
    """Return a local path as it is, and of a URL the path of an up-to-date copy.

    Args:
        path: As `command.found` lets it pass; "" stays "".
        what: Flag or key that it is the value of.

    Raises:
        FileNotFoundError: Nothing is at the URL.
        StoreError: The store cannot be read.
        OSError: The disk of the cache is full.
    """
    if not scheme(path):
        return path
    bucket = Bucket(path)
    place = room.user_folder() / "copies" / _key(bucket.url)
    copy = place / (bucket.url.rpartition("/")[2] or "copy")
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(place / "lock"):
        single = bucket.single()
        entries = {"": single} if single else _read_of(bucket.list())
        if not entries:
            raise FileNotFoundError(
                f"{what}: there is no file or folder {printable(path)}"
            )
        _bring(bucket, entries, copy, place / "copied")
    return str(copy)


def own(folder: Path) -> Path:
    """Return a folder that a program may write into by default.

    Raises:
        ValueError: It is part of a copy, which is made as it is in the store.
    """
    if folder.absolute().is_relative_to((room.user_folder() / "copies").absolute()):
        raise ValueError(
            "--out: wanted a folder to write to, since the run lies in a store; what "
            "was written into the copy of it would be lost"
        )
    return folder


def _read_of(entries: dict[str, Entry]) -> dict[str, Entry]:
    """All but the training states of a run folder, which only the run itself reads."""
    if not {"config.json", "metrics.jsonl"} <= entries.keys():
        return entries
    return {name: each for name, each in entries.items() if not _STATE.match(name)}


def _key(url: str) -> str:
    return hashlib.sha256(url.encode(errors="replace")).hexdigest()[:16]


def _bring(
    bucket: Bucket, entries: Mapping[str, Entry], copy: Path, record: Path
) -> None:
    known = _recorded(record)
    _remove_gone(copy, entries)
    wanted = {
        name: entry
        for name, entry in entries.items()
        if known.get(name) != entry or _size(copy / name) != entry.size
    }
    if not wanted:
        return
    size = sum(entry.size for entry in wanted.values())
    _log.info("copying %d files, %d bytes, of %s", len(wanted), size, bucket.url)
    _check_room(size, copy.parent, bucket.url)
    draft, names = record.with_name("draft"), iter(wanted)
    while part := {name: wanted[name] for name in islice(names, _ROUND)}:
        _remove(draft)
        bucket.get(part, draft)
        _put_in_place(draft, copy, part)
        with record.open("a", encoding="utf-8") as lines:
            for name, entry in part.items():
                lines.write(json.dumps([name, entry.size, entry.version]) + "\n")
    _remove(draft)


def _check_room(size: int, folder: Path, url: str) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(
            f"{printable(url)}: wanted {room.gigabytes(size)} for a copy, got "
            f"{room.gigabytes(free)} that are free at {folder}; make room, or name a "
            "larger disk with XDG_CACHE_HOME"
        )


def _put_in_place(draft: Path, copy: Path, names: Mapping[str, Entry]) -> None:
    for name in names:
        target = copy / name if name else copy
        if target.is_dir():  # what was a folder is now a file
            _remove(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft / name if name else draft, target)


def _remove_gone(copy: Path, entries: Mapping[str, Entry]) -> None:
    """Remove files that the store does not have, so that none is read."""
    if copy.is_file() and "" not in entries:
        copy.unlink()
    for path in [*copy.rglob("*")] if copy.is_dir() else ():
        if path.is_file() and path.relative_to(copy).as_posix() not in entries:
            path.unlink()


def _recorded(path: Path) -> dict[str, Entry]:
    """What was copied; a line that a kill has torn counts for nothing."""
    found: dict[str, Entry] = {}
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for line in lines:
        try:
            name, size, version = json.loads(line)
            found[name] = Entry(size, version)
        except (ValueError, TypeError):
            continue
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes of this host from copying the same."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
