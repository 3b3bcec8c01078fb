# SPDX-License-Identifier: Apache-2.0
"""Exact search: the product of a query with every row, shard by shard.

XLA multiplies float32 rows where they are mapped, and converts float16 rows in blocks
that stay in the cache (NumPy takes ten times as long for those).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int64

from fmfa_jax.search.shards import Shard

BLOCK = 2048
"""Float16 rows that stay in a core's cache while they are converted."""


@dataclass(frozen=True)
class Found:
    """The nearest pictures of a query.

    Attributes:
        rows: Their numbers in the index, best first; ties by the lower number.
        similarity: Their cosines.
        matches: Number of pictures that reach the minimum similarity.
        lowest: Similarity of the least similar picture.
        highest: Similarity of the most similar picture.
    """

    rows: Int64[np.ndarray, "k"]
    similarity: Float32[np.ndarray, "k"]
    matches: int
    lowest: float
    highest: float

    def hits(self) -> Iterator[tuple[int, int, float]]:
        """Yield the rank, row and similarity of each picture."""
        pairs = zip(self.rows.tolist(), self.similarity.tolist(), strict=True)
        return ((rank, *pair) for rank, pair in enumerate(pairs, 1))


class ExactSearch:
    """The shards of an index, ready to be multiplied with queries."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._unchecked = list(shards)
        try:
            # A CPU reads the rows in place; without one, they are copied.
            device = jax.local_devices(backend="cpu")[0]
        except RuntimeError:
            device = jax.local_devices()[0]
        self._rows = [jax.device_put(s.rows, device, may_alias=True) for s in shards]
        self._starts = np.cumsum([0, *(len(s.rows) for s in shards[:-1])]).tolist()

    def __call__(
        self, query: Float32[np.ndarray, "d"], top: int, *, minimum: float = -2.0
    ) -> Found:
        """Find up to `top` rows whose products with a unit row reach `minimum`.

        Raises:
            SearchError: A shard has been damaged.
        """
        # The first query reads all of the shards anyway.
        while self._unchecked:
            self._unchecked[-1].check()
            self._unchecked.pop()
        best, matches, lowest, highest = [], 0, np.inf, -np.inf
        # All products are started before the first is awaited.
        products = [_products(rows, query) for rows in self._rows]
        for start, product in zip(self._starts, products, strict=True):
            scores = np.asarray(product)
            matches += int(np.count_nonzero(scores >= minimum))
            lowest = min(lowest, float(scores.min()))
            highest = max(highest, float(scores.max()))
            chosen = _largest(scores, top)
            best.append((start + chosen, scores[chosen]))
        rows, similarity = map(np.concatenate, zip(*best, strict=True))
        order = np.lexsort((rows, -similarity))[:top]
        order = order[similarity[order] >= minimum]
        return Found(rows[order], similarity[order], matches, lowest, highest)


def _largest(scores: Float32[np.ndarray, "g"], size: int) -> Int64[np.ndarray, "k"]:
    """Return where the `size` largest scores are, with all that tie with the last."""
    if len(scores) <= size:
        return np.arange(len(scores))
    last = np.partition(scores, len(scores) - size)[len(scores) - size]
    return np.flatnonzero(scores >= last)


@jax.jit
def _products(
    rows: Float[Array, "g d"], query: Float32[np.ndarray | Array, "d"]
) -> Float32[Array, "g"]:
    dot = partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    if rows.dtype == jnp.float32 or len(rows) <= BLOCK:
        return dot(rows.astype(jnp.float32), query)

    def step(_: None, start: Array) -> tuple[None, Array]:
        block = jax.lax.dynamic_slice_in_dim(rows, start, BLOCK)
        return None, dot(block.astype(jnp.float32), query)

    starts = jnp.arange(len(rows) // BLOCK) * BLOCK
    whole = jax.lax.scan(step, None, starts)[1].reshape(-1)
    rest = rows[len(whole) :].astype(jnp.float32)
    return jnp.concatenate([whole, dot(rest, query)])
