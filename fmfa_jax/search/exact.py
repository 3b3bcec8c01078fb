# SPDX-License-Identifier: Apache-2.0
"""Exact search: the product of a query with every row, block after block.

XLA converts blocks of integers while they are in the cache, and multiplies them there
(NumPy takes many times longer); float32 rows need no conversion. The rows stay where
they are mapped: JAX on a CPU takes them without a copy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int64

from fmfa_jax.search.shards import CODE_STEP, Shard, expect_single_rows

BLOCK = 2048
"""Rows whose conversion stays in a core's cache."""
SHORT_LIST = 10
"""With int8 codes, this many times the wanted rows are ranked by their int16."""
FEWEST_LISTED = 256


@dataclass(frozen=True)
class Found:
    """The nearest pictures of a query.

    Attributes:
        rows: their numbers in the index, best first; among equals the lower number.
        similarity: their cosines.
        matches: how many pictures of the gallery reach the wanted similarity.
        lowest: similarity of the least similar picture.
        highest: similarity of the most similar picture.
    """

    rows: Int64[np.ndarray, "k"]
    similarity: Float32[np.ndarray, "k"]
    matches: int
    lowest: float
    highest: float


class ExactSearch:
    """The shards of an index, ready to be multiplied with queries."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = tuple(shards)
        for shard in shards:
            if shard.codes is not None:
                expect_single_rows(shard.rows)
        device = _host()
        kept = [s.rows if s.codes is None else s.codes for s in shards]
        self._blocks = [jax.device_put(rows, device, may_alias=True) for rows in kept]
        starts = np.cumsum([0, *(len(rows) for rows in kept)])
        self._starts: list[int] = starts.tolist()

    def __call__(
        self, query: Float32[np.ndarray, "d"], top: int, *, minimum: float = -2.0
    ) -> Found:
        """Find the rows with the largest products with a unit row.

        Args:
            query: a unit row.
            top: how many rows at most.
            minimum: only rows of at least this cosine.
        """
        coded = any(shard.codes is not None for shard in self._shards)
        listed = max(SHORT_LIST * top, FEWEST_LISTED) if coded else top
        best = _Best(listed)
        matches, lowest, highest = 0, np.inf, -np.inf
        for start, scores in zip(self._starts, self._scores(query), strict=False):
            matches += int(np.count_nonzero(scores >= minimum))
            lowest = min(lowest, float(scores.min()))
            highest = max(highest, float(scores.max()))
            best.offer(scores, start)
        rows, similarity = best.rows, best.scores
        if coded:
            rows, similarity = self._ranked(query, rows)
            highest = float(similarity[0])
        keep = similarity[:top] >= minimum
        rows, similarity = rows[:top][keep], similarity[:top][keep]
        return Found(rows, similarity, max(matches, len(rows)), lowest, highest)

    def _scores(
        self, query: Float32[np.ndarray, "d"]
    ) -> Iterator[Float32[np.ndarray, "g"]]:
        # All are started before the first is awaited.
        started = [_products(rows, query) for rows in self._blocks]
        for shard, product in zip(self._shards, started, strict=True):
            scores = np.asarray(product)
            if shard.codes is not None:
                scores = scores * np.float32(CODE_STEP)
            yield scores if shard.scales is None else scores * shard.scales

    def _ranked(
        self, query: Float32[np.ndarray, "d"], rows: Int64[np.ndarray, "k"]
    ) -> tuple[Int64[np.ndarray, "k"], Float32[np.ndarray, "k"]]:
        """Rank a short list by the rows themselves."""
        rows = np.sort(rows)
        similarity = np.empty(len(rows), np.float32)
        for shard, start in zip(self._shards, self._starts, strict=False):
            first, last = np.searchsorted(rows, [start, start + len(shard.rows)])
            similarity[first:last] = shard.unit(rows[first:last] - start) @ query
        order = np.lexsort((rows, -similarity))
        return rows[order], similarity[order]


class _Best:
    """The largest scores of the blocks so far, best first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows = np.empty(0, np.int64)
        self.scores = np.empty(0, np.float32)

    def offer(self, scores: Float32[np.ndarray, "g"], start: int) -> None:
        """Take in a block whose first row has the number `start`."""
        full = len(self.scores) == self.size
        # A later row that equals the last of the best does not displace it.
        chosen = (
            np.flatnonzero(scores > self.scores[-1])
            if full
            else _largest(scores, self.size)
        )
        rows = np.concatenate([self.rows, start + chosen])
        values = np.concatenate([self.scores, scores[chosen]])
        order = np.lexsort((rows, -values))[: self.size]
        self.rows, self.scores = rows[order], values[order]


def _largest(scores: Float32[np.ndarray, "g"], size: int) -> Int64[np.ndarray, "k"]:
    """Return where the `size` largest scores are, and all that equal the last one."""
    if len(scores) <= size:
        return np.arange(len(scores))
    last = np.partition(scores, len(scores) - size)[len(scores) - size]
    return np.flatnonzero(scores >= last)


@jax.jit
def _products(
    rows: Float32[Array, "g d"] | Int[Array, "g d"],
    query: Float32[np.ndarray | Array, "d"],
) -> Float32[Array, "g"]:
    dot = partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    if rows.dtype == jnp.float32 or len(rows) <= BLOCK:
        return dot(rows.astype(jnp.float32), query)

    def step(_: None, start: Array) -> tuple[None, Array]:
        block = jax.lax.dynamic_slice_in_dim(rows, start, BLOCK)
        return None, dot(block.astype(jnp.float32), query)

    starts = jnp.arange(len(rows) // BLOCK) * BLOCK
    whole = jax.lax.scan(step, None, starts)[1].reshape(-1)
    rest = len(rows) % BLOCK
    if not rest:
        return whole
    tail = dot(rows[len(rows) - rest :].astype(jnp.float32), query)
    return jnp.concatenate([whole, tail])


def _host() -> jax.Device:
    """Return the CPU, beside which the rows lie, or what there is where it is off."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]
