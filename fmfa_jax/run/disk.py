# SPDX-License-Identifier: Apache-2.0
"""The end of a run whose folder can no longer be written, told in one line.

The folder may lie on a disk or in an object store.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.buckets import StoreError
from data_pipeline.findings import shortened
from data_pipeline.hints import printable
from fmfa_jax.run import manifests
from fmfa_jax.run.manifests import CorruptCheckpointError

# What a disk says no with, and what to do about it.
_REFUSALS = {
    errno.ENOSPC: "make room on it",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "have it mounted for writing",
    errno.EIO: "have the disk looked at",
    errno.ESTALE: "have it mounted again",
    errno.ENODEV: "have it mounted again",
    errno.ENOTCONN: "have it mounted again",
}
# What it says of a folder that was removed, moved or closed to us.
_GONE = {
    errno.ENOENT: "put the folder back",
    errno.ENOTDIR: "put the folder back",
    errno.EACCES: "allow writing in it",
    errno.EPERM: "allow writing in it",
}


class DiskError(RuntimeError):
    """The run's folder can no longer be written."""


class SaveError(RuntimeError):
    """A checkpoint could not be written; the cause is what a library makes of it."""


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Tell in one line of a disk that refuses to be written.

    Args:
        folder: Folder of the run.

    Raises:
        DiskError: What was refused, where, which checkpoint is left, how to go on.
        Exception: Any other error, as it came.
    """
    try:
        yield
    except Exception as error:
        number = refusal(error, folder)
        if store := _store_error(error):
            raise DiskError(_told_of_store(store, folder)) from error
        if number is None and not isinstance(error, SaveError):
            raise
        raise DiskError(_told(error, number, folder)) from error


def refusal(error: BaseException | None, folder: Path) -> int | None:
    """The errno with which a disk has refused to write, if that is what happened.

    Libraries in C++ give it in words, and the cause is often several errors deep.

    Args:
        error: What was raised.
        folder: Folder of the run; an error that could also concern other files counts
            only if it names this one.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        own, name = getattr(error, "errno", None), getattr(error, "filename", None)
        ours = _is_in(folder, error, name)
        known = _REFUSALS | _GONE if ours else _REFUSALS if name is None else {}
        for number in known:
            if own == number or (own is None and os.strerror(number) in str(error)):
                return number
        error = error.__cause__ or error.__context__
    return None


def _store_error(error: BaseException | None) -> StoreError | None:
    while error is not None and not isinstance(error, StoreError):
        error = error.__cause__
    return error


def _is_in(folder: Path, error: BaseException, name: object) -> bool:
    """Whether an error is about a file of a folder, by its name or else in words."""
    here = folder.absolute()
    if isinstance(name, str | os.PathLike):
        return Path(name).absolute().is_relative_to(here)
    whole = rf"(?<![\w./-]){re.escape(str(here))}(?![\w.-])"
    return re.search(whole, str(error)) is not None


def _told(error: Exception, number: int | None, folder: Path) -> str:
    advice = (_REFUSALS | _GONE).get(number, "see that nothing else writes there")
    reason = " ".join(str(error).split())
    refused = "a save has failed" if number is None else os.strerror(number)
    return (
        f"the run has ended, since its folder {printable(str(folder))} cannot be "
        f"written: {refused}{_room(folder)}. {_survived(folder)}; "
        f"{advice}, then start the same command again. (It was: "
        f"{shortened(reason, 300)})"
    )


def _told_of_store(error: StoreError, folder: Path) -> str:
    return (
        f"the run has ended, since its folder cannot be written: {error}. "
        f"{_survived(folder)}; start the same command again"
    )


def _room(folder: Path) -> str:
    """What disk a folder is on, and its room, as far as can be found out."""
    try:
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        mount = folder.resolve()
        while not mount.is_mount():
            mount = mount.parent
    except OSError:
        return ""
    return f" (disk {printable(str(mount))}, {free / 2**20:,.0f} MiB free)"


def _survived(folder: Path) -> str:
    """Which checkpoint the run can go on from."""
    kept = folder / "checkpoints"
    try:
        names = [
            path.name for path in kept.iterdir() if re.fullmatch("[0-9]+", path.name)
        ]
    except OSError:
        return "No checkpoint is left"
    for name in sorted(names, key=int, reverse=True):
        try:
            manifests.verify(kept / name)
            return f"The checkpoint of step {name} is sound"
        except (CorruptCheckpointError, OSError):
            continue
    return "No checkpoint is left"
