# SPDX-License-Identifier: Apache-2.0
"""A method's loss over the GLOBAL batch and its gradient, at once or chunk by chunk.

The mean of the losses of chunks is another loss: the rows of one chunk would never meet
those of another. A method is therefore cut where rows begin to meet, and what lies
before the cut is computed in chunks without changing a number (Gao et al., "Scaling
Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fmfa_jax.machines.mesh import BATCH_AXES, encoding
from fmfa_jax.methods.method import Batch, Method, with_rows

Function = Callable[..., Any]


def loss_and_gradient(method: Method, *, chunks: int, mesh: Mesh) -> Function:
    """The function (params, batch, key, state) -> ((total, Measured), gradient).

    Args:
        method: Its loss is differentiated with respect to the parameters.
        chunks: Parts that the batch is encoded in. Above 1, activations are kept for
            one part at a time and every part is encoded twice; the loss is the same.
        mesh: Devices of all arrays; devices x chunks divides the batch.
    """

    def encode(params: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
        with encoding(mesh):
            return method.encode(params, batch, key)

    if chunks == 1:
        return _at_once(encode, method.compare)
    return _chunk_by_chunk(encode, method.compare, chunks, mesh)


def _at_once(encode: Function, compare: Function) -> Function:
    def total(params: Any, batch: Batch, key: jax.Array, state: Any) -> Any:
        features, notes = encode(params, batch, key)
        return compare(features, notes, batch, {**state, "params": params})

    def both(params: Any, batch: Batch, key: jax.Array, state: Any) -> Any:
        grad = jax.value_and_grad(total, has_aux=True)
        return grad(params, with_rows(batch), key, state)

    return both


def _chunk_by_chunk(
    encode: Function, compare: Function, chunks: int, mesh: Mesh
) -> Function:
    def both(params: Any, batch: Batch, key: jax.Array, state: Any) -> Any:
        """Return loss and gradient, encoded in chunks."""
        batch = with_rows(batch)
        parts = _split(batch, chunks, mesh)
        encoded = jax.lax.map(lambda part: encode(params, part, key), parts)
        features, notes = _join(encoded, mesh)

        def total(features: Any, params: Any) -> Any:
            return compare(features, notes, batch, {**state, "params": params})

        weigh = jax.value_and_grad(total, (0, 1), has_aux=True)
        value, (cotangents, own) = weigh(features, params)

        def add(grads: Any, part: tuple[Batch, Any]) -> tuple[Any, None]:
            """Add the gradient of a chunk."""
            rows, cotangent = part
            _, pull, _ = jax.vjp(lambda p: encode(p, rows, key), params, has_aux=True)
            (grad,) = pull(cotangent)
            return jax.tree.map(jnp.add, grads, grad), None

        grads, _ = jax.lax.scan(add, own, (parts, _split(cotangents, chunks, mesh)))
        return value, grads

    return both


def _split(tree: Any, chunks: int, mesh: Mesh) -> Any:
    """[b, ..] -> [chunks, b/chunks, ..]; each device's rows spread over all chunks.

    Rows are dealt out in turn, so that none has to move to another device.
    """
    place = NamedSharding(mesh, P(None, BATCH_AXES))

    def deal(x: jax.Array) -> jax.Array:
        dealt = x.reshape(x.shape[0] // chunks, chunks, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(dealt, place)

    return jax.tree.map(deal, tree)


def _join(tree: Any, mesh: Mesh) -> Any:
    """[chunks, b/chunks, ..] -> [b, ..], the inverse of `_split`."""
    place = NamedSharding(mesh, P(BATCH_AXES))

    def gather(x: jax.Array) -> jax.Array:
        joined = x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])
        return jax.lax.with_sharding_constraint(joined, place)

    return jax.tree.map(gather, tree)
