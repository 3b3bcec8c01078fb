# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a run folder.

Process 0 holds a lock (flock) on FOLDER/lock as long as it lives: the kernel releases
it however the process ends, so no lock is ever stale. The file says who holds it. On
NFS the server keeps the lock, for all hosts; file systems that cannot lock, or lock for
one host only, are told of. Reading a run takes no lock.
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from data_pipeline.command import say
from data_pipeline.hints import printable
from fmfa_jax.machines.processes import together

LOCK = "lock"
_CANNOT = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


def check_name(folder: str | Path) -> None:
    """Refuse a run folder that checkpoints could not be written to and read from.

    TensorStore takes a backslash for a slash, and paths in UTF-8 only; Orbax looks for
    the files of a save by patterns in which the whole path stands.

    Raises:
        ValueError: Names the part of the path.
    """
    for part in Path(folder).absolute().parts:
        if set(part) & set("\\*?[") or not _is_utf8(part):
            raise ValueError(
                f"the run folder {printable(str(folder))}: wanted a path in UTF-8 "
                f"without any of \\ * ? [, got '{printable(part)}' in it; take another "
                "--workdir"
            )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class InUseError(ValueError):
    """Another process trains in the run folder."""


class FolderLock:
    """The lock of a run folder, a context manager. All processes make the same calls.

    Entering it takes the lock if the folder is there, since a folder that is not has no
    other user; `take` makes the folder and takes the lock, unless that is done.
    """

    def __init__(
        self,
        folder: str | Path,
        say: Callable[[str], None] = say,
        *,
        name: str | None = None,
    ) -> None:
        """Touch nothing yet.

        Args:
            folder: Folder of the run, on a file system that all processes share.
            say: Told of a holder that did not leave in order, on process 0 only.
            name: How users call the folder; its path by default.
        """
        self._folder = Path(folder)
        self._name = printable(str(folder) if name is None else name)
        self._say = say
        self._handle: int | None = None

    def __enter__(self) -> "FolderLock":
        self._together(lambda: self._folder.is_dir())
        return self

    def __exit__(self, *failure: object) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):  # the disk may be gone
                os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None

    def take(self) -> None:
        """Take the lock, in a folder that is made if it is missing.

        Raises:
            InUseError: Names the host and process that hold it, and since when.
        """
        self._together(lambda: True)

    def _together(self, wanted: Callable[[], bool]) -> None:
        with together(f"locking {self._name}"):
            if jax.process_index() == 0 and self._handle is None and wanted():
                self._take()

    def _take(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock(handle)
            _write(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle

    def _lock(self, handle: int) -> None:
        where = self._name
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUseError(
                f"the run folder {where} is in use by {named(_read(handle))}: wait "
                "until it ends, stop it, or take another --workdir"
            ) from error
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            self._say(
                f"warning: the file system of {where} cannot lock ({error.strerror}): "
                "see that no other process trains there"
            )
        if before := _read(handle):
            self._say(_left(before, where))


def _left(holder: dict[str, Any], where: str) -> str:
    """What is said of a holder that did not leave in order."""
    text = f"note: {named(holder)} left {where} without a word; its place is taken"
    if holder.get("host") != platform.node():
        text += (
            ". If it still runs, end one of the two: this file system's locks do not "
            "reach across hosts"
        )
    return text


def holder() -> dict[str, Any]:
    """This process, as a lock tells of it."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": platform.node(), "pid": os.getpid(), "since": now}


def _write(handle: int) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(holder()).encode() + b"\n", 0)


def _read(handle: int) -> dict[str, Any]:
    return parsed(os.pread(handle, 4096, 0))


def parsed(content: bytes) -> dict[str, Any]:
    """Who a lock says holds it; empty if it says nothing that can be read."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def named(holder: dict[str, Any]) -> str:
    """The holder of a lock, for people."""
    words = {"pid": "process", "host": "on", "since": "since"}
    told = [f"{word} {holder[key]}" for key, word in words.items() if key in holder]
    return printable(" ".join(told)) or "another process"
