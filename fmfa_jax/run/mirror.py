# SPDX-License-Identifier: Apache-2.0
"""A run folder in an object store: worked on in a local folder, kept in the store.

    URL/config.json, metrics.jsonl, ...           as in any run folder
    URL/checkpoints/<step>/{state/, manifest.json}
    URL/locks/<n>                                 see `bucket_lock`

Why not write there directly: a run appends to its log, replaces files by renaming them
and has its checkpoints sealed by a rename, none of which a store has, and libraries in
C++ would each need its own way to the store. So everything is as on a disk, and the
store gets whole objects at the moments that count:

- Before a checkpoint is sealed locally, all other files that have changed are put,
  metrics.jsonl first; then the checkpoint's files; and last its manifest, whose
  presence is the seal. A checkpoint that exists locally is in the store, and a save
  that the store refuses is a save that failed.
- metrics.jsonl first: an evaluation counts as done once the log has it, and the weights
  that it kept are written before that. In the store, too, they are as new as the log.
- A checkpoint is removed manifest first, when the local one is.
- The rest is put when the run ends, however it ends.

A run starts from the store alone: the local folder is emptied, but for compiled
programs, and the log, the other files and the sealed checkpoints are brought down. What
a process wrote after its last seal is lost with it, as with a kill on a disk before the
next save, and is computed again. Hidden files and compiled programs stay local.

Of several processes, which share no disk, the first does all this. Each of the others
has a folder of its own while it runs; it fetches from the store what it has to read,
and puts only files that no other process writes.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from data_pipeline.buckets import Bucket, Entry, StoreError
from data_pipeline.hints import printable
from data_pipeline.room import user_folder
from fmfa_jax.run.bucket_lock import LOCKS, BucketLock
from fmfa_jax.run.lock import LOCK
from fmfa_jax.run.manifests import MANIFEST, UNSEALED
from fmfa_jax.run.writers.jsonl import METRICS

CHECKPOINTS = "checkpoints"
PROGRAMS = "compiled"
"""Subfolder of a run for compiled programs."""

_STEP = re.compile(f"{CHECKPOINTS}/(0|[1-9][0-9]*)/(.+)")
_UNFINISHED = re.compile(rf"{CHECKPOINTS}/[^/]*\.orbax-checkpoint-tmp[^/]*/.*")
_LOCAL = (LOCK, LOCKS, PROGRAMS)


def local_folder(url: str, process: int = 0) -> Path:
    """Where a process of a run works, in the user's cache folder.

    Args:
        url: The run folder in the store.
        process: Number of the process.
    """
    digest = hashlib.sha256(url.rstrip("/").encode(errors="replace")).hexdigest()
    return user_folder() / "runs" / (digest[:16] + (f"-{process}" if process else ""))


class Mirror:
    """Keeps in a store what a local run folder holds.

    Attributes:
        url: The run folder in the store.
    """

    def __init__(self, bucket: Bucket, folder: Path, lock: BucketLock | None) -> None:
        """Touch nothing yet.

        Args:
            bucket: The run folder in the store.
            folder: The local one.
            lock: Held while anything is put; None for those that only add files, as
                readers and all processes but the first do.
        """
        self.url = bucket.url
        self._bucket, self._folder, self._lock = bucket, folder, lock
        self._known: dict[str, tuple[int, int]] = {}

    def bring(self, *, checkpoints: bool = True) -> None:
        """Empty the local folder and fill it from the store.

        Args:
            checkpoints: Whether those that are sealed come, too.

        Raises:
            StoreError: The store cannot be read, or the folder changes meanwhile.
        """
        self.clear()
        there = self._bucket.list()
        sealed = _sealed(there)
        wanted: dict[str, Entry] = {}
        for name, entry in there.items():
            step = _step(name)
            if _travels(name) if step is None else checkpoints and step in sealed:
                wanted[name] = entry
        self._get(wanted)

    def clear(self) -> None:
        """Empty the local folder."""
        _empty(self._folder)
        self._known = {}

    def fetch(self, name: str) -> None:
        """Bring down a file, or a folder with all its files, if there is one.

        Raises:
            StoreError: The store cannot be read, or a file changes meanwhile.
        """
        there = self._bucket.list().items()
        self._get({n: e for n, e in there if f"{n}/".startswith(f"{name}/")})

    def _get(self, wanted: dict[str, Entry]) -> None:
        self._bucket.get(wanted, self._folder)
        self._known |= {
            name: self._stamp(name) for name in wanted if _step(name) is None
        }

    def push(self) -> None:
        """Put all files but checkpoints that the store does not have as they are.

        Raises:
            StoreError: The store cannot be written.
            InUseError: The run folder was taken by another process.
        """
        self._check()
        now = {name: self._stamp(name) for name in self._names()}
        changed = {name for name in now if self._known.get(name) != now[name]}
        self._bucket.put(self._folder, changed & {METRICS})
        self._bucket.put(self._folder, changed - {METRICS})
        self._bucket.remove(self._known.keys() - now.keys())
        self._known = now

    def seal(self, step: int, folder: Path) -> None:
        """Put a checkpoint, its manifest last, after all other files.

        Args:
            step: Its step.
            folder: Its files, of which only Orbax's bookkeeping may still change.

        Raises:
            StoreError: The store cannot be written; the checkpoint has no manifest.
            InUseError: The run folder was taken by another process.
        """
        self.push()
        self._remove_step(step)  # an unfinished or a corrupt one
        files = [path for path in folder.rglob("*") if path.is_file()]
        names = [path.relative_to(folder).as_posix() for path in files]
        names = [name for name in names if not _is_hidden(name) and name != MANIFEST]
        there = Bucket(f"{self.url}/{CHECKPOINTS}/{step}")
        there.put(folder, names)
        _check_arrived(there, folder, {*names} - UNSEALED)
        self._check()
        there.put(folder, [MANIFEST])

    def keep(self, steps: Iterable[int]) -> None:
        """Remove all checkpoints but those of some steps."""
        self._check()
        found = {_step(name) for name in self._bucket.list(CHECKPOINTS)} - {None}
        for step in found - {*steps}:
            self._remove_step(step)

    def _remove_step(self, step: int) -> None:
        names = self._bucket.list(f"{CHECKPOINTS}/{step}")
        seal = f"{CHECKPOINTS}/{step}/{MANIFEST}"
        self._bucket.remove([seal] if seal in names else [])
        self._bucket.remove(names.keys() - {seal})

    def _check(self) -> None:
        if self._lock is not None:
            self._lock.check()

    def _names(self) -> list[str]:
        # A walk that passes over folders which the run removes meanwhile.
        found = (
            Path(parent, name).relative_to(self._folder).as_posix()
            for parent, _, names in os.walk(self._folder)
            for name in names
        )
        return [name for name in found if _step(name) is None and _travels(name)]

    def _stamp(self, name: str) -> tuple[int, int]:
        found = (self._folder / name).stat()
        return found.st_size, found.st_mtime_ns


def _check_arrived(there: Bucket, folder: Path, names: Iterable[str]) -> None:
    sizes = {name: entry.size for name, entry in there.list().items()}
    for name in names:
        if sizes.get(name) != (folder / name).stat().st_size:
            raise StoreError(
                f"{printable(there.url)}: {printable(name)} did not arrive whole"
            )


def _sealed(names: Iterable[str]) -> set[int]:
    matches = filter(None, map(_STEP.fullmatch, names))
    return {int(found[1]) for found in matches if found[2] == MANIFEST}


def _step(name: str) -> int | None:
    """The step of the checkpoint that a file is part of."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found else None


def _travels(name: str) -> bool:
    """Whether a file that is of no checkpoint is kept in the store."""
    of_here = name.split("/")[0] in _LOCAL or _UNFINISHED.fullmatch(name)
    return not (of_here or _is_hidden(name))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _empty(folder: Path) -> None:
    """Remove what a run leaves, but for the lock and the compiled programs."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name in (LOCK, PROGRAMS):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
