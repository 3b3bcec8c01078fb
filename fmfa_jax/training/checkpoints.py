# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are verified before they are believed.

    folder/latest/<step>/{manifest.json, state/}   the newest `keep` training states
    folder/best/<step>/{manifest.json, state/}     the state with the highest score
    folder/corrupt/<kind>-<step>/                  set aside, for a post-mortem

Orbax writes the arrays, asynchronously. The manifest (see `manifests`) is written
into the temporary folder before Orbax renames it, so a checkpoint that exists is
complete, also after `kill -9`. Reading never changes the folder: another process may
evaluate from it while the run goes on.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from fmfa_jax.training import manifests
from fmfa_jax.training.lifecycle import share
from fmfa_jax.training.manifests import CorruptCheckpointError, Manifest

LATEST = "latest"
BEST = "best"
_ITEM = "state"


class Restored(NamedTuple):
    """A restored state and the step that it was saved at."""

    state: Any
    step: int


class CheckpointMismatchError(ValueError):
    """A sound checkpoint that belongs to something else than this run."""


class Checkpoints:
    """The checkpoints of one run. All processes call every method alike.

    A state is any pytree of jax.Arrays: nested dicts, optax's named tuples. It is
    stored as plain nested dicts keyed by path and comes back in the template's form.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        identity: Mapping[str, Any],
        keep: int = 1,
        say: Callable[[str], None] = print,
    ) -> None:
        """Touch nothing on disk yet.

        Args:
            folder: on a file system that all processes share.
            identity: JSON values, nested mappings allowed, that must be the same for
                a checkpoint to be usable here (model, method, optimiser, ...).
            keep: how many of the latest states stay; with 1 a corrupt checkpoint
                leaves none to fall back to.
            say: told about corrupt checkpoints, on process 0 only.
        """
        if keep < 1:
            raise ValueError(f"wanted to keep at least 1 checkpoint, got {keep}")
        self._folder = Path(folder).absolute()
        self._identity = manifests.as_json(identity)
        self._keep = {LATEST: keep, BEST: 1}
        self._say = say
        self._managers: dict[str, ocp.CheckpointManager] = {}
        self._pending: dict[str, Manifest] = {}
        self._rejected: dict[str, set[int]] = {LATEST: set(), BEST: set()}
        self._held: dict[str, Manifest | None] = {}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def save(self, step: int, state: Any) -> bool:
        """Start saving `state`; returns once it may be donated or changed.

        Waits for the save before this one and raises its error, if it had one.

        Returns:
            False when this very step is saved already.

        Raises:
            ValueError: the folder holds a newer step that was not restored.
        """
        return self._save(
            LATEST, Manifest(step, self._identity, _describe(state)), state
        )

    def save_best(self, step: int, state: Any, value: float) -> bool:
        """Start saving `state` if `value` beats the best so far (ties: the earlier).

        Returns:
            Whether it is the new best.
        """
        if not math.isfinite(value):
            raise ValueError(f"wanted a finite score at step {step}, got {value}")
        best = self._best()
        if best is not None and (step == best.step or value <= (best.value or 0.0)):
            return False
        manifest = Manifest(step, self._identity, _describe(state), float(value))
        return self._save(BEST, manifest, state)

    def restore_latest(self, template: Any) -> Restored | None:
        """Restore the newest state that verifies, or None if there is none at all.

        Args:
            template: a pytree of jax.Arrays or of jax.ShapeDtypeStructs with
                shardings; gives structure, dtypes, shapes and where to put them.

        Raises:
            CorruptCheckpointError: there are checkpoints, but none verifies.
            CheckpointMismatchError: of another configuration, or other arrays.
        """
        return self._restore(LATEST, template)

    def restore_best(self, template: Any) -> Restored | None:
        """Restore the state with the highest score; as `restore_latest`."""
        return self._restore(BEST, template)

    def best_value(self) -> float | None:
        """Return the best score so far, None before the first."""
        best = self._best()
        return None if best is None else best.value

    def wait(self) -> None:
        """Return once all started saves are on disk; raises what went wrong."""
        for manager in self._managers.values():
            manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then end the threads of the writers."""
        for manager in self._managers.values():
            manager.close()
        self._managers.clear()

    def _save(self, kind: str, manifest: Manifest, state: Any) -> bool:
        held = self._held.get(kind)
        if held is not None and held.step == manifest.step:
            return False
        manager = self._manager(kind, manifest.step)
        # The seal of the running save still needs its own manifest.
        manager.wait_until_finished()
        self._pending[kind] = self._held[kind] = manifest
        arguments = ocp.args.Composite(**{_ITEM: ocp.args.StandardSave(_plain(state))})
        return bool(manager.save(manifest.step, args=arguments, force=True))

    def _seal(self, kind: str) -> None:
        """Write the pending manifest; called by Orbax just before it renames."""
        manifest = self._pending[kind]
        folders = [
            path
            for path in (self._folder / kind).iterdir()
            if path.name.split(".")[0] == str(manifest.step)
        ]
        if len(folders) != 1:
            raise RuntimeError(
                f"wanted one folder of step {manifest.step} in {self._folder / kind}, "
                f"found {[path.name for path in folders]}"
            )
        manifests.seal(folders[0], manifest)

    def _manager(self, kind: str, step: int) -> ocp.CheckpointManager:
        if kind not in self._managers:
            self._make_room(kind, step)
            self._managers[kind] = ocp.CheckpointManager(
                self._folder / kind,
                item_names=(_ITEM,),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=self._keep[kind],
                    cleanup_tmp_directories=True,
                    async_options=ocp.AsyncOptions(
                        post_finalization_callback=lambda: self._seal(kind)
                    ),
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        barrier_sync_key_prefix=kind
                    ),
                ),
            )
        return self._managers[kind]

    def _make_room(self, kind: str, step: int) -> None:
        """Set corrupt steps aside so that their numbers can be used again."""
        if jax.process_index() == 0:
            for each in sorted(self._rejected[kind]):
                target = self._folder / "corrupt" / f"{kind}-{each}"
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(parents=True, exist_ok=True)
                (self._folder / kind / str(each)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"checkpoints:{kind}:make_room")
        self._rejected[kind].clear()
        newest = max(_steps(self._folder / kind), default=-1)
        if kind == LATEST and newest >= step:
            raise ValueError(
                f"{self._folder} holds step {newest}, so step {step} would be lost "
                "among newer ones: restore it first or choose an empty folder"
            )

    def _best(self) -> Manifest | None:
        if BEST not in self._held:
            self._find(BEST, on_none_sound="ignore")
        return self._held[BEST]

    def _restore(self, kind: str, template: Any) -> Restored | None:
        self.wait()
        manifest = self._find(kind, on_none_sound="raise")
        if manifest is None:
            return None
        where = f"{self._folder / kind / str(manifest.step)}"
        _check_arrays(manifest.arrays, _describe(template), where)
        abstract = jax.tree.map(_abstract, _plain(template))
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            restored = reader.restore(
                where,
                args=ocp.args.Composite(**{_ITEM: ocp.args.StandardRestore(abstract)}),
            )
        return Restored(_unplain(restored[_ITEM], template), manifest.step)

    def _find(self, kind: str, *, on_none_sound: str) -> Manifest | None:
        """Find the newest sound step; process 0 reads and tells the others."""
        found = share(self._verify_steps(kind) if jax.process_index() == 0 else None)
        reports, manifest = found["reports"], found["manifest"]
        self._rejected[kind] |= {int(step) for step in reports}
        lines = [
            f"{self._folder / kind / step} is corrupt: {reason}"
            for step, reason in reports.items()
        ]
        if lines and manifest is None and on_none_sound == "raise":
            raise CorruptCheckpointError(
                "\n".join(lines) + f"\nNo {kind} checkpoint verifies; restore a copy "
                f"of it, or remove {self._folder / kind} to start from the beginning"
            )
        if jax.process_index() == 0:
            for line in lines:
                self._say(line)
        self._held[kind] = None if manifest is None else Manifest(**manifest)
        if manifest is not None:
            where = f"{self._folder / kind / str(manifest['step'])}"
            _check_identity(manifest["identity"], self._identity, where)
        return self._held[kind]

    def _verify_steps(self, kind: str) -> dict[str, Any]:
        reports: dict[str, str] = {}
        for step in sorted(_steps(self._folder / kind), reverse=True):
            try:
                manifest = manifests.verify(self._folder / kind / str(step))
                return {"reports": reports, "manifest": vars(manifest)}
            except (CorruptCheckpointError, OSError) as error:
                reports[str(step)] = str(error)
        return {"reports": reports, "manifest": None}


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def _leaves(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _plain(tree: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for path, leaf in _leaves(tree).items():
        *parents, name = path.split("/")
        node = plain
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return plain


def _unplain(plain: Mapping[str, Any], template: Any) -> Any:
    leaves = _leaves(plain)
    return jax.tree.unflatten(
        jax.tree.structure(template), [leaves[path] for path in _leaves(template)]
    )


def _describe(tree: Any) -> dict[str, str]:
    return {
        path: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in _leaves(tree).items()
    }


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    if leaf.sharding is None:
        raise ValueError("wanted a template with shardings, got one without")
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _check_identity(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], where: str
) -> None:
    lines = _differences(manifests.flatten(saved), manifests.flatten(wanted))
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
            f"{where} holds other arrays than this model and optimiser need:\n"
            + "\n".join(lines)
        )


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    absent = "absent"
    return [
        f"  {key}: the checkpoint has {saved.get(key, absent)!r}, "
        f"this run {wanted.get(key, absent)!r}"
        for key in sorted(saved.keys() | wanted.keys())
        if saved.get(key, absent) != wanted.get(key, absent)
    ]
