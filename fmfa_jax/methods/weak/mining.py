# SPDX-License-Identifier: Apache-2.0
"""Mining: rows of the memory that may show the person of an anchor.

The search runs over blocks of rows with a running top-k. It gives the same rows as one
top-k over the whole similarity matrix, which never exists.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from data_pipeline.hints import unknown
from fmfa_jax.losses.arithmetic import EXACT, unit
from fmfa_jax.losses.links import Mined
from fmfa_jax.machines.mesh import over_shards
from fmfa_jax.methods.weak.memory import (
    AXIS,
    Bank,
    as_float,
    first_row,
)

EXCLUDES = ("rank0", "self")
# Rows compared at once: on a CPU a block and its cosines stay near the cache, while an
# accelerator wants few, large products.
_BLOCK_CPU, _BLOCK_ACCELERATOR = 2048, 65536
_CHUNK = 64  # rows of a block that its maximum stands for at first


def mine(
    bank: Bank,
    image: Float[Array, "b d"],
    index: Int[Array, " b"],
    *,
    links: int = 3,
    threshold: float = 0.7,
    exclude: str = "rank0",
    block: int | None = None,
    mesh: Mesh | None = None,
) -> Mined:
    """Mine up to `links` rows for each anchor in the image memory (11), (12).

    Args:
        bank: The memory before this step's update.
        image: Image features of the anchors. No gradient flows.
        index: Row of each anchor.
        links: Rows kept for each anchor, k.
        threshold: A row is valid only if its cosine is above this.
        exclude: "rank0" drops the nearest row, which the official code takes to be the
            anchor itself; "self" drops the anchor's own row, whatever its rank.
        block: Rows compared at once; None: by the backend. It changes the speed, never
            the result.
        mesh: Devices that the bank is sharded over; None: one device.
    """
    image = jax.lax.stop_gradient(image)
    similarity, slot = nearest_rows(
        bank, image, count=links + 1, block=block, mesh=mesh
    )
    if exclude == "rank0":
        similarity, slot = similarity[:, 1:], slot[:, 1:]
    elif exclude == "self":
        others = jnp.where(slot == index[:, None], -jnp.inf, similarity)
        similarity, place = jax.lax.top_k(others, links)
        slot = jnp.take_along_axis(slot, place, axis=1)
    else:
        raise ValueError(unknown("exclude", exclude, EXCLUDES))
    return Mined(similarity=similarity, slot=slot, valid=similarity > threshold)


def nearest_rows(
    bank: Bank,
    image: Float[Array, "b d"],
    *,
    count: int,
    block: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "b count"], Int[Array, "b count"]]:
    """Cosine and row of the `count` written rows whose images are nearest.

    Equal cosines are ordered by row. Where fewer rows are written, the cosine is -inf
    and the row is arbitrary. Each device searches its own rows; only candidates travel.
    """
    if block is None:
        on_cpu = jax.default_backend() == "cpu"
        block = _BLOCK_CPU if on_cpu else _BLOCK_ACCELERATOR

    def search(
        rows: Array, inverse_norm: Array, written: Array, anchors: Array
    ) -> tuple[Array, Array]:
        """Find the nearest rows of a shard, then those of all."""
        found = _scan_blocks(
            rows, inverse_norm, written, anchors, count=count, block=block
        )
        if mesh is None:
            return found
        similarity, slot = found[0], found[1] + first_row(rows, mesh)
        return _best(
            jax.lax.all_gather(similarity, AXIS, axis=1, tiled=True),
            jax.lax.all_gather(slot, AXIS, axis=1, tiled=True),
            count,
        )

    state = jax.lax.stop_gradient((bank["image"], bank["inverse_norm"]))
    specs = (P(AXIS), P(AXIS), P(AXIS), P())
    sharded = over_shards(search, mesh, specs, (P(), P()))
    return sharded(*state, bank["written"], unit(image.astype(jnp.float32)))


def _scan_blocks(
    rows: Array,
    inverse_norm: Array,
    written: Array,
    anchors: Array,
    *,
    count: int,
    block: int,
) -> tuple[Array, Array]:
    """Search one device's rows, block by block."""
    total = rows.shape[0]
    block = min(block, total)

    def step(best: tuple[Array, Array], wanted: Array) -> tuple[tuple, None]:
        """Merge a block of rows into the best so far."""
        # The last block starts early enough to be whole and skips rows already seen.
        start = jnp.minimum(wanted, total - block)
        part = jax.lax.dynamic_slice_in_dim(rows, start, block)
        norms = jax.lax.dynamic_slice_in_dim(inverse_norm, start, block)
        slot = start + jnp.arange(block, dtype=jnp.int32)
        lives = jax.lax.dynamic_slice_in_dim(written, start, block) & (slot >= wanted)
        # Rows first: a CPU then multiplies them without transposing them.
        cosines = jnp.matmul(as_float(part), anchors.T, precision=EXACT)
        cosines = jnp.where(lives[:, None], cosines * norms[:, None], -jnp.inf)
        similarity, place = _top_k_in_chunks(cosines, min(count, block))
        merged = jnp.concatenate([best[0], similarity], axis=1)
        slots = jnp.concatenate([best[1], start + place], axis=1)
        return _best(merged, slots, count), None

    empty = (
        jnp.full((len(anchors), count), -jnp.inf, jnp.float32),
        jnp.zeros((len(anchors), count), jnp.int32),
    )
    starts = jnp.arange(0, total, block, dtype=jnp.int32)
    return jax.lax.scan(step, empty, starts)[0]


def _best(similarity: Array, slot: Array, count: int) -> tuple[Array, Array]:
    """The `count` largest of each row, with their slots; the first wins a tie."""
    similarity, place = jax.lax.top_k(similarity, count)
    return similarity, jnp.take_along_axis(slot, place, axis=1)


def _top_k_in_chunks(values: Array, count: int) -> tuple[Array, Array]:
    """`jax.lax.top_k` of each column, faster: only the best chunks can hold the best.

    A value outside the `count` best chunks is beaten by the maxima of these, which also
    precede it on a tie, so the result is the same, ties included.
    """
    height, width = values.shape
    if height % _CHUNK or height // _CHUNK <= count:
        return tuple(jax.lax.top_k(values.T, count))
    maxima = values.reshape(height // _CHUNK, _CHUNK, width).max(axis=1)
    chosen = jax.lax.top_k(maxima.T, count)[1]
    chosen = jnp.sort(chosen, axis=1)  # the order of rows decides ties
    place = chosen[:, :, None] * _CHUNK + jnp.arange(_CHUNK, dtype=chosen.dtype)
    place = place.reshape(width, -1)
    return _best(values[place, jnp.arange(width)[:, None]], place, count)
