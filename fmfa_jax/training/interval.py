# SPDX-License-Identifier: Apache-2.0
"""What adds up over the steps between two log lines."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh

from fmfa_jax.machines.flops import count_flops
from fmfa_jax.methods.method import Batch, Method, State
from fmfa_jax.training.gradients import loss_and_gradient
from fmfa_jax.training.step import Report

Shapes = tuple[tuple[int, ...], ...]


class Interval:
    """A method's records and the model's FLOPs since the last log line."""

    def __init__(self, flops: Callable[[Batch], int]) -> None:
        """Start empty.

        Args:
            flops: FLOPs of one step on such a batch, see `model_flops`.
        """
        self._flops = flops
        self._total, self._records = 0, []

    def add(self, batch: Batch, report: Report) -> None:
        """Count one more step; nothing is fetched from the device."""
        self._total += self._flops(batch)
        if report.records is not None:
            self._records.append(report.records)

    def take(self) -> tuple[int, list[Any]]:
        """FLOPs over all devices, and each step's records, still on the device."""
        taken = self._total, self._records
        self._total, self._records = 0, []
        return taken


def model_flops(method: Method, state: State, mesh: Mesh) -> Callable[[Batch], int]:
    """The function batch -> FLOPs of loss and gradient, traced once for each shape.

    What is recomputed to save memory is no progress and does not count.

    Args:
        method: What is learned.
        state: Arrays or shapes; not touched.
        mesh: Devices of the arrays.
    """
    lean = replace(method, model=method.model.portable)
    gradient = loss_and_gradient(lean, chunks=1, mesh=mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    known: dict[Shapes, int] = {}

    def flops(batch: Batch) -> int:
        """Return the model's FLOPs for batches of such shapes."""
        sizes = tuple(x.shape for x in batch.values())
        if sizes not in known:
            like = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in batch.items()}
            known[sizes] = count_flops(gradient, shapes["params"], like, key, shapes)
        return known[sizes]

    return flops
