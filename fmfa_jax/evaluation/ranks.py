# SPDX-License-Identifier: Apache-2.0
"""Ranks of the true matches, counted in blocks without a sort or an index matrix.

The k-th best match of a query has rank k + (number of NON-matching gallery items at
least as similar). This resolves ties against the model: a non-matching item with the
same similarity is ahead. Counts are exact integers that add up over blocks of the
gallery and over devices.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Int64

from data_pipeline.records import UNKNOWN_PERSON
from fmfa_jax.evaluation.blocks import (
    UNROLL,
    blocks_at_once,
    fitting_gallery,
    fitting_queries,
    gallery_blocks,
    replicate,
    round_up,
    unit_rows,
)

_NO_MATCH = np.iinfo(np.int32).max


@dataclass(frozen=True)
class MatchRanks:
    """The 1-based ranks of all matches of each query, ascending and concatenated.

    Those of query i are `ranks[offsets[i]:offsets[i + 1]]`.
    """

    ranks: Int32[np.ndarray, "matches"]
    offsets: Int64[np.ndarray, "offsets"]
    gallery: int

    @property
    def queries(self) -> int:
        """The number of queries."""
        return len(self.offsets) - 1

    @property
    def first(self) -> Int32[np.ndarray, "q"]:
        """The rank of each query's best match."""
        return self.ranks[self.offsets[:-1]]

    @cached_property
    def average_precision(self) -> Float[np.ndarray, "q"]:
        """Mean over a query's matches of the precision at the match, in 0..1."""
        start, count = self.offsets[:-1], np.diff(self.offsets)
        order = np.arange(len(self.ranks)) - np.repeat(start, count) + 1
        return np.add.reduceat(order / self.ranks, start) / count

    def of(self, chosen: Bool[np.ndarray, "q"]) -> "MatchRanks":
        """Return the ranks of some of the queries, in the same gallery."""
        count = np.diff(self.offsets)
        offsets = np.concatenate([[0], np.cumsum(count[chosen])]).astype(np.int64)
        return MatchRanks(self.ranks[np.repeat(chosen, count)], offsets, self.gallery)

    @property
    def inverse_penalty(self) -> Float[np.ndarray, "q"]:
        """Number of a query's matches over the rank of the last, in 0..1 (INP)."""
        return np.diff(self.offsets) / self.ranks[self.offsets[1:] - 1]


def match_ranks(
    query: Float[np.ndarray | Array, "q d"],
    gallery: Float[np.ndarray | Array, "g d"],
    query_ids: Int[np.ndarray, "q"],
    gallery_ids: Int[np.ndarray, "g"],
    *,
    query_block: int | None = None,
    gallery_block: int | None = None,
    mesh: Mesh | None = None,
) -> MatchRanks:
    """Rank every match by the float32 cosine of its features.

    Args:
        query: Features of the queries, of any float dtype and length.
        gallery: Features of the gallery.
        query_ids: Person of each query.
        gallery_ids: Person of each gallery item; unknown persons match nobody.
        query_block: Queries at a time; by default as many as fit in `STRIP_BYTES`.
        gallery_block: Gallery items per matrix product; by default all on one CPU.
        mesh: Devices to share the gallery. Every process must pass the same features
            and gets the same result.

    Raises:
        ValueError: There is no query, a query has no match, or a feature is not finite.
    """
    matches = _find_matches(query_ids, gallery_ids)
    size = query_block or fitting_queries(len(query_ids), len(gallery_ids), mesh)
    rows = unit_rows(query, name="query")
    part = gallery_block or fitting_gallery(len(gallery_ids), mesh)
    blocks, pads = gallery_blocks(gallery, part, mesh)

    def count(
        block: np.ndarray, positions: np.ndarray, valid: np.ndarray
    ) -> np.ndarray:
        """Count, for a block of queries, what is above each positive."""
        padded = np.zeros((size, rows.shape[1]), np.float32)
        padded[: len(block)] = rows[block]
        arrays = (replicate(x, mesh) for x in (padded, positions, valid))
        counts = _count_products(*arrays, blocks, np.int32(pads), mesh=mesh)
        return np.asarray(counts)

    at_once = blocks_at_once(size, len(gallery_ids), mesh)
    return _collect(count, matches, size, at_once)


def score_ranks(
    scores: Callable[[Int64[np.ndarray, "rows"]], Float32[np.ndarray | Array, "b g"]],
    query_ids: Int[np.ndarray, "q"],
    gallery_ids: Int[np.ndarray, "g"],
) -> MatchRanks:
    """Rank every match by scores that are no cosines, such as corrected ones.

    Args:
        scores: Maps indices of queries to their scores with the whole gallery, larger
            for what is more alike.
        query_ids: See `match_ranks`.
        gallery_ids: See `match_ranks`.

    Raises:
        ValueError: See `match_ranks`.
    """
    matches = _find_matches(query_ids, gallery_ids)
    rows = round_up(len(gallery_ids), UNROLL)

    def count(
        block: np.ndarray, positions: np.ndarray, valid: np.ndarray
    ) -> np.ndarray:
        """Count, for a block of queries, what is above each positive."""
        strip = np.full((rows, positions.shape[1]), -np.inf, np.float32)
        strip[: len(gallery_ids), : len(block)] = np.asarray(scores(block)).T
        if not np.isfinite(strip[: len(gallery_ids), : len(block)]).all():
            raise ValueError("expected finite scores, got NaN or infinity")
        return np.asarray(_count_scores(strip, positions, valid))

    return _collect(count, matches, fitting_queries(len(query_ids), rows), 1)


@jax.jit
def _count_scores(
    strip: Float32[Array, "g b"],
    positions: Int32[Array, "m b"],
    valid: Bool[Array, "m b"],
) -> Int32[Array, "m b"]:
    found = jnp.take_along_axis(strip, positions, axis=0)
    return _at_least(strip, jnp.where(valid, found, jnp.inf), axes=())


@dataclass(frozen=True)
class _Matches:
    """Query i matches gallery items `order[start[i] : start[i] + count[i]]`."""

    order: Int32[np.ndarray, "g"]
    start: Int64[np.ndarray, "q"]
    count: Int64[np.ndarray, "q"]


def _find_matches(query_ids: np.ndarray, gallery_ids: np.ndarray) -> _Matches:
    if not len(query_ids):
        raise ValueError("expected at least one query, got none: nothing to measure")
    order = np.argsort(gallery_ids, kind="stable").astype(np.int32)
    persons = gallery_ids[order]
    start = np.searchsorted(persons, query_ids, side="left")
    count = np.searchsorted(persons, query_ids, side="right") - start
    count[query_ids == UNKNOWN_PERSON] = 0
    lost = np.flatnonzero(count == 0)
    if len(lost):
        raise ValueError(
            f"every query needs a match in the gallery, but query {lost[0]} (person"
            f" {query_ids[lost[0]]}) has none, like {len(lost)} of {len(query_ids)}"
            " queries in all. Omit them, or add images of these people to the gallery"
        )
    return _Matches(order, start.astype(np.int64), count.astype(np.int64))


def _collect(
    count: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    matches: _Matches,
    size: int,
    at_once: int,
) -> MatchRanks:
    """Count in blocks, `at_once` at a time, and convert the counts to ranks."""
    offsets = np.concatenate([[0], np.cumsum(matches.count)]).astype(np.int64)
    ranks = np.zeros(offsets[-1], np.int32)
    blocks = list(_query_blocks(matches, size))
    with ThreadPoolExecutor(at_once) as pool:
        counts = pool.map(count, *zip(*blocks, strict=True))
        for (rows, _, valid), at_least in zip(blocks, counts, strict=True):
            own = valid[:, : len(rows)]
            order = np.arange(len(own))[:, None]
            target = (offsets[rows][None] + order)[own]
            ranks[target] = _ranks_from_counts(at_least[:, : len(rows)], own)[own]
    return MatchRanks(ranks, offsets, len(matches.order))


def _query_blocks(
    matches: _Matches, size: int
) -> Iterator[
    tuple[Int64[np.ndarray, "rows"], Int32[np.ndarray, "m b"], Bool[np.ndarray, "m b"]]
]:
    """Yield query rows with the gallery positions [m, size] of their matches.

    Queries with equally many matches go together, so a person with a thousand images
    costs a thousand comparisons only for the queries of that person.
    """
    by_count = np.argsort(matches.count, kind="stable")
    for first in range(0, len(by_count), size):
        rows = by_count[first : first + size]
        order = np.arange(_padded_matches(int(matches.count[rows].max())))[:, None]
        valid = np.zeros((len(order), size), bool)
        valid[:, : len(rows)] = order < matches.count[rows]
        positions = np.zeros(valid.shape, np.int32)
        index = np.minimum(matches.start[rows] + order, len(matches.order) - 1)
        positions[:, : len(rows)] = matches.order[index]
        yield rows, positions, valid


def _ranks_from_counts(
    at_least: Int32[np.ndarray, "m b"], valid: Bool[np.ndarray, "m b"]
) -> Int32[np.ndarray, "m b"]:
    """Convert counts of items at least as similar as each match to ascending ranks.

    Counts include matches. Two matches have the same count if and only if they tie, so
    the counts alone determine the order and how many of the counted are matches.
    """
    counts = np.sort(np.where(valid, at_least, _NO_MATCH), axis=0)
    order = np.arange(1, len(counts) + 1, dtype=np.int32)[:, None]
    last_of_tie = np.append(counts[:-1] != counts[1:], np.ones_like(valid[:1]), axis=0)
    ends = np.where(last_of_tie, order, _NO_MATCH)
    matching = np.minimum.accumulate(ends[::-1], axis=0)[::-1]
    return order + counts - matching


@partial(jax.jit, static_argnames="mesh")
def _count_products(
    query: Float32[Array, "b d"],
    positions: Int32[Array, "m b"],
    valid: Bool[Array, "m b"],
    gallery: Float32[Array, "blocks size d"],
    pads: Int32[Array | np.generic, ""],
    *,
    mesh: Mesh | None,
) -> Int32[Array, "m b"]:
    """Count the gallery items at least as similar as each match, over all devices."""
    axes = () if mesh is None else mesh.axis_names
    local = partial(_count_local, axes=axes)
    if mesh is not None:
        everywhere, shared = PartitionSpec(), PartitionSpec(axes)
        specs = (everywhere, everywhere, everywhere, shared)
        local = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=everywhere)
    counts, thresholds = local(query, positions, valid, gallery)
    # Rows of padding are zeros with a similarity of exactly 0: subtract them.
    return counts - pads * (thresholds <= 0)


def _count_local(
    query: Float32[Array, "b d"],
    positions: Int32[Array, "m b"],
    valid: Bool[Array, "m b"],
    gallery: Float32[Array, "blocks size d"],
    *,
    axes: tuple[str, ...],
) -> tuple[Int32[Array, "m b"], Float32[Array, "m b"]]:
    """Multiply once, look up the matches in the product, then count.

    The product is kept for the whole (local) gallery, so that a match is compared by
    exactly the number in it, regardless of summation order.
    """
    dot = partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    strip = jax.lax.map(lambda block: dot(block, query.T), gallery)
    strip = strip.reshape(-1, query.shape[0])
    if axes:  # each match is on one device; the others add 0
        local = positions - jax.lax.axis_index(axes) * strip.shape[0]
        here = (local >= 0) & (local < strip.shape[0])
        found = jnp.take_along_axis(strip, jnp.where(here, local, 0), axis=0)
        found = jax.lax.psum(jnp.where(here, found, 0.0), axes)
    else:
        found = jnp.take_along_axis(strip, positions, axis=0)
    thresholds = jnp.where(valid, found, jnp.inf)
    counts = _at_least(strip, thresholds, axes=axes)
    return (jax.lax.psum(counts, axes) if axes else counts), thresholds


def _at_least(
    strip: Float32[Array, "g b"],
    thresholds: Float32[Array, "m b"],
    *,
    axes: tuple[str, ...],
) -> Int32[Array, "m b"]:
    """Count, per column, the entries of the strip that reach each threshold.

    A loop over rows, because XLA vectorizes a few additions of [m, b] but not a
    reduction over [m, g, b]: 4 times faster on a CPU.
    """

    def step(counts: Array, rows: Array) -> tuple[Array, None]:
        """Add the counts of a strip of scores."""
        for row in rows:
            counts = counts + (row >= thresholds).astype(jnp.int32)
        return counts, None

    steps = strip.reshape(-1, UNROLL, strip.shape[1])
    zeros = jnp.zeros_like(thresholds, jnp.int32)
    if axes:
        zeros = jax.lax.pcast(zeros, axes, to="varying")
    return jax.lax.scan(step, zeros, steps)[0]


def _padded_matches(count: int) -> int:
    """Round up to one of few sizes to compile for: 4 8 12 .. 32 64 128 .."""
    return round_up(count, 4) if count <= 32 else 1 << (count - 1).bit_length()
