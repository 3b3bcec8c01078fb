# SPDX-License-Identifier: Apache-2.0
"""The k nearest gallery items of every query, block by block."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from fmfa_jax.evaluation.blocks import (
    GALLERY_BLOCK,
    LARGEST_QUERY_BLOCK,
    gallery_blocks,
    round_up,
    unit_rows,
)


@dataclass(frozen=True)
class Nearest:
    """Gallery indices and cosines of each query's nearest items, best first."""

    index: Int32[np.ndarray, "q k"]
    similarity: Float32[np.ndarray, "q k"]


def nearest(
    query: Float[np.ndarray | Array, "q d"],
    gallery: Float[np.ndarray | Array, "g d"],
    k: int,
    *,
    gallery_block: int = GALLERY_BLOCK,
) -> Nearest:
    """Find the k most similar gallery items, or all if there are fewer.

    This is for display, not for metrics: ties go to the lower index, whereas metrics
    rank the wrong item first. Runs on one device.

    Raises:
        ValueError: A feature is not finite.
    """
    rows = unit_rows(query, name="query")
    blocks, _ = gallery_blocks(gallery, gallery_block, None)
    k = min(k, len(gallery))
    index = np.zeros((len(rows), k), np.int32)
    similarity = np.zeros((len(rows), k), np.float32)
    size = min(LARGEST_QUERY_BLOCK, round_up(len(rows), 8))
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        padded = np.zeros((size, rows.shape[1]), np.float32)
        padded[: len(part)] = part
        found = _nearest(padded, blocks, np.int32(len(gallery)), k=k)
        here = slice(first, first + len(part))
        index[here], similarity[here] = (np.asarray(x)[: len(part)] for x in found)
    return Nearest(index, similarity)


@partial(jax.jit, static_argnames="k")
def _nearest(
    query: Float32[Array | np.ndarray, "b d"],
    gallery: Float32[Array, "blocks size d"],
    items: Int32[Array | np.generic, ""],
    *,
    k: int,
) -> tuple[Int32[Array, "b k"], Float32[Array, "b k"]]:
    """Keep the best k over all blocks; rows from `items` on are padding."""
    size = gallery.shape[1]

    def step(best: tuple[Array, Array], block: tuple[Array, Array]) -> tuple:
        """Merge a block of the gallery into the best so far."""
        number, rows = block
        index = number * size + jnp.arange(size, dtype=jnp.int32)
        cosines = jnp.dot(query, rows.T, precision=jax.lax.Precision.HIGHEST)
        cosines = jnp.where(index < items, cosines, -jnp.inf)
        values = jnp.concatenate([best[1], cosines], axis=1)
        indices = jnp.broadcast_to(index, cosines.shape)
        indices = jnp.concatenate([best[0], indices], axis=1)
        values, chosen = jax.lax.top_k(values, k)
        return (jnp.take_along_axis(indices, chosen, axis=1), values), None

    start = (
        jnp.zeros((query.shape[0], k), jnp.int32),
        jnp.full((query.shape[0], k), -jnp.inf, jnp.float32),
    )
    numbers = jnp.arange(gallery.shape[0], dtype=jnp.int32)
    return jax.lax.scan(step, start, (numbers, gallery))[0]
