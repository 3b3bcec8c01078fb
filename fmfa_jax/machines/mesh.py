# SPDX-License-Identifier: Apache-2.0
"""The mesh, and where batches and parameters lie on it."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Smaller parameters are replicated: moving them costs more than it saves.
SMALLEST_SHARDED = 2**16

BATCH_AXES = ("data", "fsdp")


def make_mesh(*, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh [data, fsdp] over all devices of all processes (or those given).

    Raises:
        ValueError: See `layout`.
    """
    grid = layout(jax.devices() if devices is None else devices, fsdp)
    # Auto axes: with jax.make_mesh's Explicit default the gradient of x @ w with a
    # batch-sharded x raises ShardingTypeError.
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def layout(devices: Sequence[Any], fsdp: int) -> np.ndarray:
    """Devices as [data, fsdp]: rows along the fast network, columns across.

    The devices of a row gather parameters from each other for every layer, those of a
    column only add up gradients. On TPUs a row therefore stays inside a slice, whose
    chips have an interconnect of their own; between slices there is the data centre's
    network. Slices lie one after the other, as XLA wants them to add up in two stages.

    Raises:
        ValueError: `fsdp` does not divide the number of devices, or of those of a
            slice; or processes are not numbered slice by slice.
    """
    devices = by_process(devices)
    sizes = _slice_sizes(devices)
    common = math.gcd(*sizes)
    if fsdp < 1 or common % fsdp:
        possible = [n for n in range(1, common + 1) if common % n == 0]
        each = f" of each of the {len(sizes)} slices" if len(sizes) > 1 else ""
        raise ValueError(
            f"mesh.fsdp={fsdp} does not divide the {common} devices{each}; "
            f"possible: {possible}"
        )
    return np.asarray(devices).reshape(-1, fsdp)


def _slice_sizes(devices: Sequence[Any]) -> list[int]:
    """The numbers of devices of a TPU's slices; of other machines, of all devices.

    JAX calls each host of GPUs a slice, whose networks reach further.
    """
    if devices[0].platform != "tpu":
        return [len(devices)]
    runs = [(s, len(list(run))) for s, run in groupby(devices, key=_slice)]
    if len({index for index, _ in runs}) < len(runs):
        order = ", ".join(str(index) for index, _ in runs)
        raise ValueError(
            f"processes 0, 1, ... lie in the slices {order}: wanted all processes of a "
            "slice one after the other; number them so (PROCESS_ID), or leave it to JAX"
        )
    return [size for _, size in runs]


def _slice(device: Any) -> int:
    return getattr(device, "slice_index", 0)


def by_process(devices: Sequence[Any]) -> list[Any]:
    """Devices in process order, which is the order of a batch's rows.

    A TPU slice numbers its devices by position, not by host. A row would then get other
    random numbers than on one host, and a copy of the parameters (fsdp) would spread
    over hosts for no reason.
    """
    return sorted(devices, key=lambda device: device.process_index)


def check_batch_size(batch_size: int, mesh: Mesh, *, chunks: int = 1) -> None:
    """Refuse a batch that does not divide over devices and chunks.

    Raises:
        ValueError: Names all numbers and the nearest batch sizes that do divide.
    """
    n = mesh.size * chunks
    if chunks < 1:
        raise ValueError(f"train.chunks: wanted at least 1, got {chunks}")
    if batch_size < 1 or batch_size % n:
        near = sorted({max(n, batch_size // n * n), (batch_size // n + 1) * n})
        parts = f" in {chunks} chunks" if chunks > 1 else ""
        raise ValueError(
            f"batch size {batch_size} does not divide over {mesh.size} devices{parts}; "
            f"nearest that do: {near}"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: its rows are spread over all devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that is whole on every device."""
    return NamedSharding(mesh, P())


def encoding(mesh: Mesh) -> AbstractContextManager[Any]:
    """The context in which a model may be traced for parameters that `mesh` shares.

    Without an fsdp axis they lie whole on every device, and nothing has to be said.
    """
    if mesh.shape["fsdp"] == 1:
        return nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Process-local rows -> global arrays sharded over the batch axes."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Shardings for all leaves of a train state (arrays or shape structs).

    Without an fsdp axis everything is replicated. With one, the longest dimension that
    it divides is split; arrays of fewer than `SMALLEST_SHARDED` values stay whole.
    """
    fsdp = mesh.shape["fsdp"]

    def rule(leaf: Any) -> NamedSharding:
        """Shard an array's largest divisible axis, or replicate it."""
        dims = [i for i, n in enumerate(leaf.shape) if n % fsdp == 0]
        if fsdp == 1 or not dims or np.prod(leaf.shape) < SMALLEST_SHARDED:
            return replicated(mesh)
        axis = max(dims, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, P(*([None] * axis), "fsdp"))

    return jax.tree.map(rule, state)


def over_shards(
    function: Callable, mesh: Mesh | None, in_specs: object, out_specs: object
) -> Callable:
    """Run `function` on each device of `mesh` with its part; None: leave it alone."""
    if mesh is None:
        return function
    # The function itself makes replicated results equal; they are not checked again.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
