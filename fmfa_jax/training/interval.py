# SPDX-License-Identifier: Apache-2.0
"""What adds up over the steps between two log lines."""

from collections.abc import Callable
from typing import Any

import jax

from fmfa_jax.machines.flops import count_flops
from fmfa_jax.training.gradients import Batch, Loss, Measured, loss_and_gradient

Shapes = tuple[tuple[int, ...], ...]


class Interval:
    """Links that were mined and FLOPs that the model took since the last log line."""

    def __init__(self, flops: Callable[[Batch], int]) -> None:
        """Start with nothing.

        Args:
            flops: of one step on such a batch, see `model_flops`.
        """
        self._flops = flops
        self._total, self._links = 0, []

    def add(self, batch: Batch, measured: Measured) -> None:
        """One more step; nothing is fetched from the device."""
        self._total += self._flops(batch)
        if measured.links is not None:
            self._links.append(measured.links)

    def take(self) -> tuple[int, list[Any]]:
        """FLOPs over all devices, and the links of each step (still on the device)."""
        taken = self._total, self._links
        self._total, self._links = 0, []
        return taken


def model_flops(loss: Loss, state: Any, mesh: Any) -> Callable[[Batch], int]:
    """The function batch -> FLOPs of loss and gradient, traced once for each shape.

    Args:
        loss: of a model that recomputes nothing, or recomputation is counted.
        state: arrays or shapes; not touched.
        mesh: of the memory, if there is one.
    """
    gradient = loss_and_gradient(loss, chunks=1, mesh=mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    known: dict[Shapes, int] = {}

    def flops(batch: Batch) -> int:
        sizes = tuple(x.shape for x in batch.values())
        if sizes not in known:
            like = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in batch.items()}
            known[sizes] = count_flops(gradient, shapes["params"], like, key, shapes)
        return known[sizes]

    return flops
