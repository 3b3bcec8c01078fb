# SPDX-License-Identifier: Apache-2.0
"""Training states in the form in which they are stored: nested dicts keyed by path."""

from collections.abc import Callable, Mapping
from errno import ENOENT
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.experimental import multihost_utils

from data_pipeline.findings import shortened
from fmfa_jax.machines.processes import first_of
from fmfa_jax.machines.trees import named_leaves, not_finite, some

ITEM = "state"
"""Subfolder of a checkpoint that holds the arrays."""


class Onlooker:
    """The writer of a process for which another one saves."""

    def save(self, *told: Any, **named: Any) -> None:
        """Leave it to process 0."""

    def wait_until_finished(self) -> None:
        """Have nothing to wait for."""

    def close(self) -> None:
        """Have nothing to end."""


def writer(
    seal: Callable[[], None], *, alone: bool
) -> ocp.AsyncCheckpointer | Onlooker:
    """What saves states, in the background.

    Args:
        seal: Called on process 0 when all files of a state are written.
        alone: Process 0 saves what `whole` gives it; otherwise each process saves its
            own parts, into one folder.
    """
    if alone and jax.process_index() > 0:
        return Onlooker()
    processes = ocp.options.MultiprocessingOptions(
        active_processes={0} if alone else None
    )
    parts = ocp.CompositeOptions(multiprocessing_options=processes)
    return ocp.AsyncCheckpointer(
        ocp.CompositeCheckpointHandler(ITEM, composite_options=parts),
        async_options=ocp.AsyncOptions(post_finalization_callback=seal),
        multiprocessing_options=processes,
    )


def whole(state: Any) -> Any:
    """All of a state on process 0, as NumPy arrays; nothing on the others.

    All processes must call it. What they share is gathered one array at a time, so no
    device holds more than that of them. NumPy arrays, since Orbax takes no jax.Array
    from one process of several.
    """
    first = jax.process_index() == 0

    def fetched(leaf: jax.Array) -> Any:
        """Return a leaf as NumPy, gathered where hosts share it."""
        if not leaf.is_fully_replicated:
            array = multihost_utils.process_allgather(leaf, tiled=True)
        elif first:
            array = np.asarray(leaf.addressable_data(0))
        return array if first else ()

    return jax.tree.map(fetched, state)


def arguments(state: Any) -> ocp.args.Composite:
    """How a state is saved."""
    return ocp.args.Composite(**{ITEM: ocp.args.StandardSave(plain(state))})


def read(folder: Path, template: Any) -> Any:
    """Restore a state in the form, dtypes, shapes and placement of a template.

    Raises:
        Exception: Whatever Orbax makes of files that it cannot use.
    """
    abstract = jax.tree.map(_abstract, plain(template))
    wanted = ocp.args.Composite(**{ITEM: ocp.args.StandardRestore(abstract)})
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        restored = reader.restore(str(folder), args=wanted)
    leaves = named_leaves(restored[ITEM])
    return jax.tree.unflatten(
        jax.tree.structure(template), [leaves[path] for path in named_leaves(template)]
    )


def read_alike(folder: Path, template: Any) -> tuple[Any, str]:
    """A state, or on all processes alike why it cannot be used; see `read`."""
    state, reason = None, ""
    try:
        state = read(folder, template)
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # too little memory is no damage
    except Exception as error:
        reason = f"it cannot be restored: {shortened(str(error), 200)}"
    reason = first_of(reason)
    if not reason and (broken := not_finite(state)):
        reason = f"NaN or infinity in {some(broken)}"
    return state, reason


def check_stored(folder: Path, names: Mapping[str, Any]) -> None:
    """Read back what a save has stored, so that no part can have been removed since.

    Args:
        folder: Of a checkpoint that is complete but for its manifest.
        names: Of the arrays.

    Raises:
        FileNotFoundError: Something is not there any more.
    """
    base = {"driver": "file", "path": f"{folder / ITEM}/"}
    found: set[str] = set()
    try:
        store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
        keys = store.list().result()
        # The last byte tells that all are there; the manifest reads the rest.
        for read in [store.read(key, byte_range=slice(-1, None)) for key in keys]:
            read.result()
        found |= {key.decode().rsplit("/", 1)[0] for key in keys}
    except Exception as error:
        raise FileNotFoundError(ENOENT, "cannot be read back", str(folder)) from error
    if missing := {name.replace("/", ".") for name in names} - found:
        what = f"was saved without {min(missing)}"
        raise FileNotFoundError(ENOENT, what, str(folder))


def describe(tree: Any) -> dict[str, str]:
    """Path -> "dtype[shape]" of each array."""
    return {
        path: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in named_leaves(tree).items()
    }


def plain(tree: Any) -> dict[str, Any]:
    """The same arrays as nested dicts."""
    nested: dict[str, Any] = {}
    for path, leaf in named_leaves(tree).items():
        *parents, name = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return nested


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    if leaf.sharding is None:
        raise ValueError("wanted a template with shardings, got one without")
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
