# SPDX-License-Identifier: Apache-2.0
"""Exact search: the product of a query with every row, shard by shard.

A query is bound by memory, so each row is read once, where it is mapped: XLA fuses the
conversion of float16 with the products and runs on all cores. A row's product does not
depend on its place, so equal pictures tie.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int64

from fmfa_jax.search.shards import Shard

_LANES = 16
"""Sums that each row's product is split into; narrower ones are not vectorized."""


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
    """The shards of an index, ready to be multiplied with queries.

    Those in `checked` are known to be sound.
    """

    def __init__(
        self, shards: Sequence[Shard], checked: Collection[Shard] = ()
    ) -> None:
        self._shards = shards
        self._unchecked = [shard for shard in shards if shard not in checked]
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
        self.check()
        rows, similarity = np.empty(0, np.int64), np.empty(0, np.float32)
        matches, lowest, highest = 0, np.inf, -np.inf
        # All products are started before the first is awaited.
        products = [_products(shard, query) for shard in self._rows]
        for start, product in zip(self._starts, products, strict=True):
            scores = np.asarray(product)
            matches += int(np.count_nonzero(scores >= minimum))
            lowest = min(lowest, float(scores.min()))
            highest = max(highest, float(scores.max()))
            worst = float(similarity[-1]) if len(similarity) == top else minimum
            chosen = _largest(scores, top, worst)
            rows = np.concatenate([rows, start + chosen])
            similarity = np.concatenate([similarity, scores[chosen]])
            order = np.lexsort((rows, -similarity))[:top]
            rows, similarity = rows[order], similarity[order]
        return Found(rows, similarity, matches, lowest, highest)

    @property
    def checked(self) -> set[Shard]:
        """The shards that are known to be sound."""
        return set(self._shards) - set(self._unchecked)

    def check(self) -> None:
        """Raise SearchError if a shard has been damaged; once is enough."""
        while self._unchecked:
            self._unchecked[-1].check()
            self._unchecked.pop()


def _largest(
    scores: Float32[np.ndarray, "g"], size: int, minimum: float
) -> Int64[np.ndarray, "k"]:
    """Return where the `size` largest scores are, with all that tie with the last.

    Scores below the minimum are left out, which spares the search most of them.
    """
    places = np.flatnonzero(scores >= minimum)
    if len(places) <= size:
        return places
    values = scores[places]
    last = np.partition(values, len(values) - size)[len(values) - size]
    return places[values >= last]


@jax.jit
def _products(
    rows: Float[Array, "g d"], query: Float32[np.ndarray | Array, "d"]
) -> Float32[Array, "g"]:
    """Add up every 16th product, then these sums.

    XLA vectorizes this for float16, too, and takes half the time of its own product of
    a matrix with a vector.
    """
    lanes = math.gcd(rows.shape[1], _LANES)
    rows, query = rows.reshape(len(rows), -1, lanes), jnp.reshape(query, (-1, lanes))
    sums = sum(rows[:, i].astype(jnp.float32) * part for i, part in enumerate(query))
    # Otherwise each of the next additions would repeat those above.
    sums = jax.lax.optimization_barrier(sums)
    return sum(sums[:, i] for i in range(lanes))
