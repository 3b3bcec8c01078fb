# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are verified before they are trusted.

    folder/<step>/{manifest.json, state/}   the newest `keep` training states
    folder/corrupt/<step>/                  set aside, for a post-mortem

Orbax writes the arrays asynchronously. The manifest (see `manifests`) goes into its
temporary folder before Orbax renames it, so a checkpoint that exists is complete, even
after `kill -9`. Reading never changes the folder: another process may evaluate from it
while the run goes on.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from data_pipeline.command import say
from fmfa_jax.machines.processes import broadcast
from fmfa_jax.machines.trees import named_leaves, not_finite, some
from fmfa_jax.run import manifests
from fmfa_jax.run.manifests import CorruptCheckpointError, Manifest

CORRUPT = "corrupt"
_ITEM = "state"


class Restored(NamedTuple):
    """A restored state and the step that it was saved at."""

    state: Any
    step: int


class CheckpointMismatchError(ValueError):
    """A sound checkpoint that belongs to another run."""


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
        keep: int = 1,
        say: Callable[[str], None] = say,
    ) -> None:
        """Touch nothing on disk yet.

        Args:
            folder: On a file system that all processes share.
            identity: JSON values, nested mappings allowed, which a checkpoint must
                have been saved with (model, method, optimiser, ...).
            keep: How many of the latest states are kept; with 1, a corrupt checkpoint
                leaves none to fall back to.
            say: Told about corrupt checkpoints, on process 0 only.
        """
        if keep < 1:
            raise ValueError(f"wanted to keep at least 1 checkpoint, got {keep}")
        self._folder = Path(folder).absolute()
        self._identity = manifests.as_json(identity)
        self._keep = keep
        self._say = say
        self._manager: ocp.CheckpointManager | None = None
        self._newest: Manifest | None = None
        self._rejected: dict[int, str] = {}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def save(self, step: int, state: Any) -> bool:
        """Start saving `state`; returns once it may be donated or changed.

        Waits for the previous save and raises its error, if there was one.

        Returns:
            False if this very step is already saved.

        Raises:
            ValueError: The folder holds a newer step that was not restored.
            FloatingPointError: The state holds a NaN or an infinity.
        """
        if self._newest is not None and self._newest.step == step:
            return False
        if broken := not_finite(state):
            raise FloatingPointError(
                f"the state after step {step} is not saved: wanted finite numbers, got "
                f"NaN or infinity in {some(broken)}"
            )
        manager = self._open(step)
        # The running save is sealed with its own manifest.
        manager.wait_until_finished()
        self._newest = Manifest(step, self._identity, _describe(state))
        arguments = ocp.args.Composite(**{_ITEM: ocp.args.StandardSave(_plain(state))})
        return bool(manager.save(step, args=arguments, force=True))

    def restore_latest(self, template: Any) -> Restored | None:
        """Restore the newest state that verifies; None if there is no checkpoint.

        One that holds a NaN or an infinity counts as corrupt.

        Args:
            template: A pytree of jax.Arrays, or of jax.ShapeDtypeStructs with
                shardings: structure, dtypes, shapes and placement of the result.

        Raises:
            CorruptCheckpointError: There are checkpoints, but none verifies.
            CheckpointMismatchError: It is of another configuration, or holds other
                arrays.
        """
        self.wait()
        self._rejected.clear()
        while (manifest := self._find_newest()) is not None:
            state = self._read(manifest, template)
            if not (broken := not_finite(state)):
                self._newest = manifest
                return Restored(state, manifest.step)
            self._reject(manifest.step, f"NaN or infinity in {some(broken)}")
        return None

    def _read(self, manifest: Manifest, template: Any) -> Any:
        where = str(self._folder / str(manifest.step))
        _check_identity(manifest.identity, self._identity, where)
        _check_arrays(manifest.arrays, _describe(template), where)
        abstract = jax.tree.map(_abstract, _plain(template))
        arguments = ocp.args.Composite(**{_ITEM: ocp.args.StandardRestore(abstract)})
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            restored = reader.restore(where, args=arguments)
        return _unplain(restored[_ITEM], template)

    def wait(self) -> None:
        """Wait until the running save is on disk; raise what went wrong."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def saved(self) -> Path | None:
        """Folder of the newest sound checkpoint, if this object knows one; waits."""
        self.wait()
        step = None if self._newest is None else self._newest.step
        return None if step is None else self._folder / str(step)

    def close(self) -> None:
        """Wait, then end the writer's threads."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _open(self, step: int) -> ocp.CheckpointManager:
        if self._manager is None:
            self._make_room(step)
            self._manager = ocp.CheckpointManager(
                self._folder,
                item_names=(_ITEM,),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=self._keep,
                    cleanup_tmp_directories=True,
                    async_options=ocp.AsyncOptions(
                        post_finalization_callback=self._seal
                    ),
                ),
            )
        return self._manager

    def _make_room(self, step: int) -> None:
        """Set corrupt steps aside, so that their numbers can be used again."""
        if jax.process_index() == 0:
            for each in sorted(self._rejected):
                target = self._folder / CORRUPT / str(each)
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(parents=True, exist_ok=True)
                (self._folder / str(each)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints:make_room")
        self._rejected.clear()
        newest = max(_steps(self._folder), default=-1)
        if newest >= step:
            raise ValueError(
                f"{self._folder} holds step {newest}, so step {step} would be lost "
                "among newer ones: restore it first or choose an empty folder"
            )

    def _seal(self) -> None:
        """Write the manifest; Orbax calls it on process 0 just before the rename."""
        manifest = self._newest
        folders = [
            path
            for path in self._folder.iterdir()
            if manifest is not None and path.name.split(".")[0] == str(manifest.step)
        ]
        if manifest is None or len(folders) != 1:
            raise RuntimeError(
                f"wanted one folder of the running save in {self._folder}, found "
                f"{[path.name for path in folders]}"
            )
        manifests.seal(folders[0], manifest)

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
                f"{self._folder} to start from the beginning"
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
        if jax.process_index() == 0:
            self._say(self._line(step))

    def _line(self, step: int) -> str:
        reason = self._rejected[step]
        return f"checkpoint {self._folder / str(step)} is corrupt: {reason}"


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def _plain(tree: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for path, leaf in named_leaves(tree).items():
        *parents, name = path.split("/")
        node = plain
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return plain


def _unplain(plain: Mapping[str, Any], template: Any) -> Any:
    leaves = named_leaves(plain)
    return jax.tree.unflatten(
        jax.tree.structure(template), [leaves[path] for path in named_leaves(template)]
    )


def _describe(tree: Any) -> dict[str, str]:
    return {
        path: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in named_leaves(tree).items()
    }


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    if leaf.sharding is None:
        raise ValueError("wanted a template with shardings, got one without")
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _check_identity(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], where: str
) -> None:
    lines = _differences(*(flatten_dict(x, sep=".") for x in (saved, wanted)))
    if lines:
        raise CheckpointMismatchError(
            f"{where} belongs to another configuration:\n" + "\n".join(lines) + "\n"
            "Use the configuration it was saved with, or another working folder"
        )


def _check_arrays(
    saved: Mapping[str, str], wanted: Mapping[str, str], where: str
) -> None:
    lines = _differences(saved, wanted)
    if lines:
        raise CheckpointMismatchError(
            f"{where} holds other arrays than this model, this optimiser and this "
            "version of the code need; go on with those that it was saved by, or in "
            "another working folder:\n" + "\n".join(lines)
        )


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [
        f"  {key}: the checkpoint has {_shown(saved, key)}, this run "
        f"{_shown(wanted, key)}"
        for key in sorted(saved.keys() | wanted.keys())
        if _shown(saved, key) != _shown(wanted, key)
    ]


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "absent"
