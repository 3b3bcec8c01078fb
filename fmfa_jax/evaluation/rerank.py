# SPDX-License-Identifier: Apache-2.0
"""k-reciprocal re-ranking (Zhong et al., CVPR 2017), for captions and pictures.

Over all queries and pictures together: N(x, k) is x and its k nearest; R(x, k) holds
those y of N(x, k) with x in N(y, k); R*(x) adds R(y, k1 / 2) for each y of R(x, k1)
when more than two thirds of it lie in R(x, k1). With d the squared Euclidean distance
of unit features over the largest of x's row, V(x) has exp(-d(x, y)) at the members y of
R*(x), scaled to the sum 1, and is then averaged over x and its k2 - 1 nearest. The
final distance is (1 - weight) * (1 - sum min / sum max of V(q) and V(g)) + weight * d.

Where the paper and its code differ (the code divides by the largest distance, and wants
MORE than two thirds) this follows the code, which published figures come from. Like the
code it lets test queries take part in each other's neighbourhoods: it is transductive.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Float32, Int, Int32
from scipy import sparse

from fmfa_jax.evaluation.blocks import unit_rows
from fmfa_jax.evaluation.nearest import nearest
from fmfa_jax.evaluation.ranks import MatchRanks, score_ranks

LIMIT_BYTES = 8 * 2**30
"""Memory above which re-ranking is refused."""
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Reciprocal:
    """Sizes of the neighbourhoods, and the weight of the original distance.

    Raises:
        ValueError: They do not fit each other.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3

    def __post_init__(self) -> None:
        if not 1 <= self.k2 <= self.k1 + 1:
            raise ValueError(
                f"expected k2 from 1 to k1 + 1, got k1 {self.k1} and k2 {self.k2}"
            )
        if not 0 <= self.weight <= 1:
            raise ValueError(f"expected lambda from 0 to 1, got {self.weight}")

    @property
    def half(self) -> int:
        """k1 / 2, rounded as NumPy does: half to even."""
        return round(self.k1 / 2)

    def bytes(self, items: int, width: int) -> int:
        """Return an upper bound of the memory for so many captions and pictures.

        Features twice; V and its transpose as an index and a value per entry.
        """
        entries = min(items, self.k2 * (self.k1 + 1) * (self.half + 1))
        return items * (2 * 4 * width + 2 * 8 * entries)


def reranked(
    query: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "g d"],
    query_ids: Int[np.ndarray, "q"],
    gallery_ids: Int[np.ndarray, "g"],
    options: Reciprocal,
) -> MatchRanks:
    """Rank every match by the final distance.

    Raises:
        ValueError: It may need more than `LIMIT_BYTES`; or see `ranks.match_ranks`.
    """
    everything = np.concatenate([unit_rows(query), unit_rows(gallery)])
    _check_memory(len(query), *everything.shape, options)
    index = nearest(everything, everything, options.k1 + 1).index
    # The nearest to what points the other way is the farthest.
    closest = -nearest(-everything, everything, 1).similarity[:, 0]
    largest = np.maximum(2 - 2 * closest, np.finfo(np.float32).tiny)
    vectors = _averaged(_weights(everything, index, largest, options), index, options)
    items = vectors[len(query) :].T.tocsr()
    pictures = everything[len(query) :]

    def scores(rows: np.ndarray) -> np.ndarray:
        """Return the re-ranked scores of some queries."""
        distance = 2 - 2 * everything[rows] @ pictures.T
        distance *= options.weight / largest[rows, None]
        for at, row in enumerate(rows.tolist()):
            jaccard = _jaccard(vectors, items, row)
            distance[at] += (1 - options.weight) * jaccard
        return -distance

    return score_ranks(scores, query_ids, gallery_ids)


def _check_memory(queries: int, items: int, width: int, options: Reciprocal) -> None:
    needed = options.bytes(items, width)
    if needed > LIMIT_BYTES:
        raise ValueError(
            f"re-ranking {queries} captions and {items - queries} pictures may need "
            f"{needed / 2**30:.1f} GiB, more than {LIMIT_BYTES / 2**30:.1f} GiB: lower "
            "--k1 or --k2, or measure fewer"
        )


def _reciprocal(index: Int32[np.ndarray, "n k"], k: int) -> list[frozenset[int]]:
    """Return R(x, k) of each item, from the nearest ones of all."""
    near = index[:, : k + 1]
    found: list[frozenset[int]] = []
    for first in range(0, len(near), _ROWS_AT_ONCE):
        part = near[first : first + _ROWS_AT_ONCE]
        own = np.arange(first, first + len(part))[:, None, None]
        mutual = (near[part] == own).any(axis=2)
        found += [
            frozenset(row[kept].tolist())
            for row, kept in zip(part, mutual, strict=True)
        ]
    return found


def _expanded(
    near: list[frozenset[int]], half: list[frozenset[int]]
) -> Iterator[list[int]]:
    """Yield R* of each item, from R(x, k1) and R(x, k1 / 2) of all."""
    for own in near:
        members = set(own)
        for other in own:
            if 3 * len(half[other] & own) > 2 * len(half[other]):
                members |= half[other]
        yield sorted(members)


def _weights(
    rows: Float32[np.ndarray, "n d"],
    index: Int32[np.ndarray, "n k"],
    largest: Float32[np.ndarray, "n"],
    options: Reciprocal,
) -> sparse.csr_array:
    """Return V before it is averaged, one row per item."""
    near, half = (_reciprocal(index, k) for k in (options.k1, options.half))
    members = list(_expanded(near, half))
    count = np.array([len(each) for each in members])
    start = np.concatenate([[0], np.cumsum(count)])
    columns = np.fromiter((y for each in members for y in each), np.int32, start[-1])
    values = np.empty(len(columns), np.float32)
    for x, (first, last) in enumerate(pairwise(start)):
        distance = 2 - 2 * rows[columns[first:last]] @ rows[x]
        values[first:last] = np.exp(-distance / largest[x])
        values[first:last] /= values[first:last].sum()
    return sparse.csr_array((values, columns, start), shape=(len(rows), len(rows)))


def _averaged(
    vectors: sparse.csr_array, index: Int32[np.ndarray, "n k"], options: Reciprocal
) -> sparse.csr_array:
    """Return the mean of each item's V and those of its k2 - 1 nearest."""
    items, k = len(index), min(options.k2, index.shape[1])
    share = np.full(items * k, 1 / k, np.float32)
    start = np.arange(0, items * k + 1, k)
    nearby = sparse.csr_array((share, index[:, :k].ravel(), start), vectors.shape)
    return (nearby @ vectors).tocsr()


def _jaccard(
    vectors: sparse.csr_array, items: sparse.csr_array, row: int
) -> Float32[np.ndarray, "g"]:
    """Return the Jaccard distance of a query's V from that of each picture.

    Both sum to 1, so that the sum of maxima is 2 - the sum of minima.
    """
    own = slice(vectors.indptr[row], vectors.indptr[row + 1])
    shared = items[vectors.indices[own]]
    values = np.repeat(vectors.data[own], np.diff(shared.indptr))
    smaller = np.minimum(values, shared.data)
    common = np.bincount(shared.indices, smaller, minlength=items.shape[1])
    return (1 - common / (2 - common)).astype(np.float32)
