# SPDX-License-Identifier: Apache-2.0
"""Approximate search by FAISS, for galleries that exact search is too slow for.

An inverted file: the rows lie in cells, and a query looks into the nearest ones. How
many it needs is measured at build time against exact search, with two kinds of queries:
sentences about people (which lie elsewhere in the space than pictures do, so that
pictures alone would flatter the result) and the gallery's own pictures.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Float32

from data_pipeline.synthetic.attributes import identity_attributes
from data_pipeline.synthetic.captions import write_caption
from data_pipeline.synthetic.scene import take_shot
from fmfa_jax.search.encoder import Encoder
from fmfa_jax.search.exact import Found
from fmfa_jax.search.shards import Shard
from fmfa_jax.search.store import FaissRecord, SearchError

RECALL_WANTED = 0.99
"""Mean recall@10 that decides how many cells a query looks into."""
_SENTENCES = _PICTURES = 64
_TOP = 10
_ROWS_AT_ONCE = 8192
_FEWEST_PER_CELL = 39  # FAISS warns below it


def load_faiss() -> ModuleType:
    """Import FAISS.

    Raises:
        SearchError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise SearchError(
            "the engine 'faiss' needs a package that is not installed: "
            "pip install faiss-cpu; the engine 'exact' needs nothing"
        ) from error
    return faiss


def build(
    folder: Path,
    name: str,
    shards: Sequence[Shard],
    encoder: Encoder,
) -> FaissRecord:
    """Write a FAISS index over shards, and measure its recall.

    Args:
        folder: of the index.
        name: of the file to write.
        shards: in order.
        encoder: embeds the sentences that recall is measured with.

    Raises:
        SearchError: FAISS is not installed.
    """
    faiss = load_faiss()
    total, width = sum(len(s.rows) for s in shards), shards[0].rows.shape[1]
    cells = max(1, min(int(4 * total**0.5), total // _FEWEST_PER_CELL))
    kind = "Flat" if shards[0].scales is None else "SQfp16"
    made = faiss.index_factory(width, f"IVF{cells},{kind}", faiss.METRIC_INNER_PRODUCT)
    made.train(_sample(shards, min(total, 64 * cells)))
    for shard in shards:
        made.add(shard.unit(slice(None)))
    queries = np.concatenate(
        [
            encoder.sentences(_sentences(_SENTENCES)),
            _sample(shards, min(total, _PICTURES)),
        ]
    )
    probes, recall = _fewest_probes(made, queries, _exact_top(shards, queries), cells)
    unfinished = folder / f".{name}.unfinished"
    faiss.write_index(made, str(unfinished))
    os.replace(unfinished, folder / name)
    return FaissRecord(name, probes, recall)


class ApproximateSearch:
    """A FAISS index, mapped from the disk."""

    def __init__(self, folder: Path, record: FaissRecord) -> None:
        faiss = load_faiss()
        path = folder / record.file
        try:
            flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
            self._index = faiss.read_index(str(path), flags)
        except RuntimeError as error:
            raise SearchError(
                f"{path} is missing or damaged; index the gallery again"
            ) from error
        self._index.nprobe = record.probes

    def __call__(
        self, query: Float32[np.ndarray, "d"], top: int, *, minimum: float = -2.0
    ) -> Found:
        """See `ExactSearch`; matches and lowest are of the found rows only."""
        scores, rows = self._index.search(query[None], min(top, self._index.ntotal))
        there = rows[0] >= 0
        scores, rows = scores[0][there], rows[0][there].astype(np.int64)
        lowest, highest = float(scores.min()), float(scores.max())
        keep = scores >= minimum
        return Found(rows[keep], scores[keep], int(keep.sum()), lowest, highest)


def _fewest_probes(
    made: object,
    queries: Float32[np.ndarray, "q d"],
    exact: np.ndarray,
    cells: int,
) -> tuple[int, float]:
    """Double the cells that are looked into until the recall is as wanted."""
    probes = 1
    while True:
        made.nprobe = min(probes, cells)
        found = made.search(queries, exact.shape[1])[1]
        hits = [len(set(a) & set(b)) for a, b in zip(found, exact, strict=True)]
        shares = np.array(hits) / exact.shape[1]
        # The worse of the two kinds of queries counts.
        recall = float(min(shares[:_SENTENCES].mean(), shares[_SENTENCES:].mean()))
        if recall >= RECALL_WANTED or probes >= cells:
            return made.nprobe, recall
        probes *= 2


def _exact_top(
    shards: Sequence[Shard], queries: Float32[np.ndarray, "q d"]
) -> np.ndarray:
    """Return the numbers of each query's nearest rows, by NumPy."""
    best = np.empty((len(queries), 0), np.float32)
    numbers = np.empty((len(queries), 0), np.int64)
    start = 0
    for shard in shards:
        for first in range(0, len(shard.rows), _ROWS_AT_ONCE):
            block = shard.unit(slice(first, first + _ROWS_AT_ONCE))
            scores = np.concatenate([best, queries @ block.T], 1)
            new = np.arange(start + first, start + first + len(block))
            new = np.broadcast_to(new, (len(queries), len(block)))
            known = np.concatenate([numbers, new], 1)
            top = np.argsort(-scores, axis=1, kind="stable")[:, :_TOP]
            best = np.take_along_axis(scores, top, 1)
            numbers = np.take_along_axis(known, top, 1)
        start += len(shard.rows)
    return numbers


def _sample(shards: Sequence[Shard], count: int) -> Float32[np.ndarray, "count d"]:
    """Take rows evenly over all shards."""
    starts = np.cumsum([0, *(len(shard.rows) for shard in shards)])
    chosen = np.linspace(0, starts[-1] - 1, count).astype(np.int64)
    parts = []
    for shard, first, last in zip(shards, starts, starts[1:], strict=False):
        inside = chosen[(chosen >= first) & (chosen < last)]
        parts.append(shard.unit(inside - first))
    return np.concatenate(parts)


def _sentences(count: int) -> list[str]:
    """Write sentences such as people ask with."""
    rng = np.random.default_rng(0)
    return [
        write_caption(person, take_shot(rng, style="studio", umbrella=False), rng)
        for person in identity_attributes(0, count)
    ]
