# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are verified before they are trusted.

    folder/<step>/{manifest.json, state/}   the newest `keep` training states
    folder/corrupt/<step>/                  set aside, for a post-mortem

Whatever else lies in the folder is left alone. Orbax writes the arrays asynchronously.
They are read back, and the manifest (see `manifests`) goes into the temporary folder
before Orbax renames it, so a checkpoint that exists is complete, even after `kill -9`.
Reading never changes the folder: another process may evaluate from it while the run
goes on.

Processes that share no disk, but a store (see `mirror`), have a folder each. Process 0
then saves the whole state for all, and has all checkpoints; the others copy the one
that it restores.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from errno import ENOENT
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from data_pipeline.buckets import StoreError
from data_pipeline.command import say
from data_pipeline.findings import shortened
from data_pipeline.hints import printable
from fmfa_jax import files
from fmfa_jax.machines.processes import broadcast, first_of, together
from fmfa_jax.machines.trees import not_finite, some
from fmfa_jax.run import belonging, manifests, repeats, states
from fmfa_jax.run.disk import SaveError, refusal
from fmfa_jax.run.lock import InUseError
from fmfa_jax.run.manifests import CorruptCheckpointError, Manifest
from fmfa_jax.run.mirror import CHECKPOINTS, Mirror

CORRUPT = "corrupt"
_UNFINISHED = ".orbax-checkpoint-tmp"
_STEP = "(0|[1-9][0-9]*)"  # "5.bak" and "05" are not ours


class Restored(NamedTuple):
    """A restored state and the step that it was saved at."""

    state: Any
    step: int


class Checkpoints:
    """The checkpoints of one run. All processes must make the same calls.

    A state is any pytree of jax.Arrays: nested dicts, optax's named tuples. It is
    stored as nested dicts keyed by path and comes back in the form of the template.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        identity: Mapping[str, Any],
        told: Mapping[str, Any] | None = None,
        keep: int = 1,
        most_failed: int = 0,
        say: Callable[[str], None] = say,
        mirror: Mirror | None = None,
    ) -> None:
        """Touch nothing on disk yet.

        Args:
            folder: On a file system that all processes share; one of this process where
                there is a mirror.
            identity: JSON values, nested mappings allowed, which a checkpoint must
                have been saved with (model, method, optimiser, ...); see `identity`.
            told: What may have changed since a checkpoint was saved, but is said.
            keep: How many of the latest states are kept; with 1, a corrupt checkpoint
                leaves none to fall back to.
            most_failed: Saves in a row that may fail before a later one raises. Where
                several processes save none may: they cannot agree on what has failed.
            say: Told about corrupt checkpoints, such changes and failed saves, on
                process 0 only.
            mirror: Gets each checkpoint from process 0 before it is sealed here.
        """
        if keep < 1:
            raise ValueError(f"wanted to keep at least 1 checkpoint, got {keep}")
        self._folder = Path(folder).absolute()
        self._identity = manifests.as_json(identity)
        self._told = manifests.as_json(told or {})
        self._keep = keep
        several = jax.process_count() > 1
        self._apart = several and mirror is not None
        self._most_failed = 0 if several and not self._apart else most_failed
        self._mirror = mirror
        self.tell(say)
        self._writer: ocp.AsyncCheckpointer | states.Onlooker | None = None
        self._newest: Manifest | None = None
        self._before: Manifest | None = None  # the newest, until a save is on disk
        self._error: SaveError | None = None
        self._failed = 0
        self._fails = False  # the run, and the others may be gone
        self._rejected: dict[int, str] = {}

    def tell(self, say: Callable[[str], None]) -> None:
        """Tell `say` from now on, on process 0."""
        self._say = say if jax.process_index() == 0 else lambda text: None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *failure: object) -> None:
        # What ended the run is told, not what a save makes of it.
        self._fails = failure[0] is not None
        with contextlib.suppress(*[Exception] if self._fails else []):
            self.close()

    def save(self, step: int, state: Any) -> bool:
        """Start saving `state`; returns once it may be donated or changed.

        Waits for the previous save. If that has failed this one is the next try, unless
        too many were in vain.

        Returns:
            False if this very step is already saved.

        Raises:
            ValueError: The folder holds a newer step that was not restored.
            FloatingPointError: The state holds a NaN or an infinity.
            SaveError: More than `most_failed` saves in a row could not be written.
            FileNotFoundError: The folder was removed.
        """
        if self._newest is not None and self._newest.step == step:
            return False
        if broken := not_finite(state):
            raise FloatingPointError(
                f"the state after step {step} is not saved: wanted finite numbers, got "
                f"NaN or infinity in {some(broken)}"
            )
        self._settle()  # the running save is sealed with its own manifest
        writer = self._open(step)
        self._before, self._newest = (
            self._newest,
            Manifest(step, self._identity, states.describe(state), self._told),
        )
        saved = states.whole(state) if self._apart else state
        try:
            with self._saving():
                writer.save(self._folder / str(step), args=states.arguments(saved))
        except SaveError as error:
            self._error = error
        return True

    def _settle(self) -> None:
        """Wait for the running save; bear with it if it fails, unless too many did."""
        try:
            self.wait()
        except SaveError as error:
            self._failed += 1
            if self._failed > self._most_failed:
                raise
            number = refusal(error, self._folder)
            why = "" if number is None else f" ({os.strerror(number)})"
            self._say(
                f"warning: {shortened(str(error), 200)}{why}; training goes on and "
                f"tries again at the next checkpoint ({self._failed} in a row; more "
                f"than {self._most_failed} end the run, see checkpoint.max_failed)"
            )

    def restore_latest(self, template: Any) -> Restored | None:
        """Restore the newest state that verifies; None if there is no checkpoint.

        One that cannot be read, or holds a NaN or an infinity, counts as corrupt.

        Args:
            template: A pytree of jax.Arrays, or of jax.ShapeDtypeStructs with
                shardings: structure, dtypes, shapes and placement of the result.

        Raises:
            CorruptCheckpointError: There are checkpoints, but none verifies.
            CheckpointMismatchError: It is not of this run, see `belonging`.
        """
        self.wait()
        self._rejected.clear()
        while (manifest := self._find_newest()) is not None:
            where = self._folder / str(manifest.step)
            arrays = states.describe(template)
            belonging.check(manifest, self._identity, arrays, where)
            state, reason = self._read(where, template)
            if not reason:
                self._newest = manifest
                for note in belonging.notes(
                    manifest, self._identity, self._told, where
                ):
                    self._say(note)
                return Restored(state, manifest.step)
            self._reject(manifest.step, reason)
        return None

    def _read(self, where: Path, template: Any) -> tuple[Any, str]:
        """A state, or on all processes alike why it cannot be used."""
        if not self._apart or self._mirror is None:
            return states.read_alike(where, template)
        reason, copies = "", jax.process_index() > 0
        with together(f"copying {_name(where)}"):
            if copies:
                self._mirror.fetch(f"{CHECKPOINTS}/{where.name}")
                reason = manifests.damage(where)
        state, reason = None, first_of(reason)
        if not reason:
            state, reason = states.read_alike(where, template)
        if copies:  # only process 0 keeps checkpoints
            shutil.rmtree(where, ignore_errors=True)
        return state, reason

    def wait(self) -> None:
        """Wait until the running save is on disk.

        Raises:
            SaveError: It could not be written.
        """
        if self._writer is None:
            return
        try:
            with self._alike():
                if self._error is not None:
                    raise self._error
                with self._saving():
                    self._writer.wait_until_finished()
        except SaveError:
            self._forget()
            raise
        self._failed = 0
        self._remove_old()

    @contextlib.contextmanager
    def _alike(self) -> Iterator[None]:
        """Raise on all processes what fails on process 0, where it saves for all."""
        if not self._apart or self._fails:
            yield
            return
        failure: SaveError | None = None
        with together("saving a checkpoint"):
            try:
                yield
            except SaveError as error:
                failure = error
        if text := broadcast(str(failure or "")):
            raise failure or SaveError(f"process 0: {text}")

    def _forget(self) -> None:
        """Leave a failed save, and its writer, whose threads may have ended."""
        writer, self._writer = self._writer, None
        self._newest, self._error = self._before, None
        with contextlib.suppress(Exception):  # which have been told of
            writer.close()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except InUseError:
            raise  # no later save could be written
        except Exception as error:
            step = None if self._newest is None else self._newest.step
            raise SaveError(f"step {step} could not be saved: {error}") from error

    def saved(self) -> Path | None:
        """Folder of the newest sound checkpoint, if this object knows one; waits."""
        self.wait()
        step = None if self._newest is None else self._newest.step
        return None if step is None else self._folder / str(step)

    def close(self) -> None:
        """Wait, then end the writer's threads."""
        self.wait()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, step: int) -> ocp.AsyncCheckpointer:
        if self._writer is None:
            self._make_room(step)
            repeats.silence()
            self._writer = states.writer(self._seal, alone=self._apart)
        if jax.process_index() == 0 and not self._folder.is_dir():
            # Orbax would make it again, and the run go on without what was in it.
            raise FileNotFoundError(ENOENT, "was removed", str(self._folder))
        return self._writer

    def _make_room(self, step: int) -> None:
        """Set corrupt steps aside, so that their numbers can be used again."""
        with together("making room for checkpoints"):
            if jax.process_index() == 0:
                self._folder.mkdir(parents=True, exist_ok=True)
                for name in map(str, sorted(self._rejected)):
                    files.set_aside(self._folder / name, self._folder / CORRUPT / name)
                for left in _steps(self._folder, _UNFINISHED):
                    shutil.rmtree(self._folder / f"{left}{_UNFINISHED}")
        self._rejected.clear()
        newest = broadcast(max(_steps(self._folder), default=-1))
        if newest >= step:
            raise ValueError(
                f"{_name(self._folder)} holds step {newest}, so step {step} would be "
                "lost among newer ones: restore it first or choose an empty folder"
            )

    def _remove_old(self) -> None:
        """Keep only the newest steps, and files and links that bear such names."""
        if jax.process_index() == 0 and self._folder.is_dir():
            for step in sorted(_steps(self._folder))[: -self._keep]:
                path = self._folder / str(step)
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
            if self._mirror is not None:
                self._keep_in_store(self._mirror)

    def _keep_in_store(self, mirror: Mirror) -> None:
        try:
            mirror.keep(_steps(self._folder))
        except StoreError as error:
            self._say(f"warning: {error}; old checkpoints wait for the next save")

    def _seal(self) -> None:
        """Write the manifest; Orbax calls it on process 0 just before the rename."""
        manifest = self._newest
        assert manifest is not None  # set by the save that is being sealed
        folder = self._folder / f"{manifest.step}{_UNFINISHED}"
        states.check_stored(folder, manifest.arrays)
        manifests.seal(folder, manifest)
        if self._mirror is not None:
            self._mirror.seal(manifest.step, folder)

    def _find_newest(self) -> Manifest | None:
        """Find the newest step not rejected; process 0 reads and tells the others."""
        found = broadcast(self._verify_steps() if jax.process_index() == 0 else None)
        for step, reason in found["reports"].items():
            self._reject(int(step), reason)
        if found["manifest"] is not None:
            return Manifest(**found["manifest"])
        if self._rejected:
            raise CorruptCheckpointError(
                "\n".join(map(self._line, self._rejected))
                + "\nNo checkpoint verifies: restore a copy of one, or remove "
                f"{_name(self._folder)} to start from the beginning"
            )
        return None

    def _verify_steps(self) -> dict[str, Any]:
        reports: dict[str, str] = {}
        steps = set(_steps(self._folder)) - self._rejected.keys()
        for step in sorted(steps, reverse=True):
            try:
                manifest = manifests.verify(self._folder / str(step))
                return {"reports": reports, "manifest": vars(manifest)}
            except (CorruptCheckpointError, OSError) as error:
                reports[str(step)] = str(error)
        return {"reports": reports, "manifest": None}

    def _reject(self, step: int, reason: str) -> None:
        self._rejected[step] = reason
        self._say(self._line(step))

    def _line(self, step: int) -> str:
        reason = self._rejected[step]
        where = _name(self._folder / str(step))
        return f"checkpoint {where} is corrupt: {reason}"


def _steps(folder: Path, suffix: str = "") -> list[int]:
    """Steps that entries of a folder are named after, with a suffix."""
    names = os.listdir(folder) if folder.is_dir() else []
    form = re.compile(_STEP + re.escape(suffix))
    return [int(found[1]) for found in map(form.fullmatch, names) if found]


def _name(path: Path) -> str:
    return printable(str(path))
