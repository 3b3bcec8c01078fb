# SPDX-License-Identifier: Apache-2.0
"""Approximate search with FAISS, for galleries too large for exact search.

An inverted file: rows lie in cells, and a query visits the nearest ones. How many it
needs is measured against exact search when the index is built, with two kinds of
queries: sentences (which lie elsewhere in the space than pictures do, so that pictures
alone would flatter the result) and the gallery's own pictures.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float32

from fmfa_jax import files
from fmfa_jax.search.encoder import IndexModel
from fmfa_jax.search.exact import ExactSearch, Found
from fmfa_jax.search.shards import Shard, checksum
from fmfa_jax.search.store import FaissRecord, SearchError

RECALL_WANTED = 0.99
"""Mean recall@10 that decides how many cells a query visits."""
SENTENCES = tuple(
    Path(__file__).with_name("sentences.txt").read_text("utf-8").splitlines()
)
PICTURES = 64
"""Pictures of the gallery that are queries, too."""
TOP = 10
_FEWEST_PER_CELL = 39  # FAISS warns below it


def load_faiss() -> ModuleType:
    """Import FAISS; raise SearchError if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise SearchError(
            "the engine 'faiss' needs a package that is not installed: "
            "pip install faiss-cpu; the engine 'exact' needs nothing"
        ) from error
    return faiss


def build(
    folder: Path, name: str, shards: Sequence[Shard], model: IndexModel
) -> FaissRecord:
    """Write a FAISS index over shards, and measure its recall."""
    faiss = load_faiss()
    total, width = sum(len(s.rows) for s in shards), shards[0].rows.shape[1]
    cells = max(1, min(int(4 * total**0.5), total // _FEWEST_PER_CELL))
    kind = "Flat" if shards[0].rows.dtype == np.float32 else "SQfp16"
    made = faiss.index_factory(width, f"IVF{cells},{kind}", faiss.METRIC_INNER_PRODUCT)
    made.train(sample(shards, min(total, 64 * cells)))
    for shard in shards:
        made.add(shard.unit(slice(None)))
    queries = [model.sentences(SENTENCES), sample(shards, min(total, PICTURES))]
    probes, recall = _fewest_probes(made, ExactSearch(shards), queries, cells)
    with files.replacing(folder / name) as draft:
        faiss.write_index(made, str(draft))
    return FaissRecord(name, probes, recall, _checksum(folder / name))


class ApproximateSearch:
    """A FAISS index, mapped from the disk."""

    def __init__(self, folder: Path, record: FaissRecord) -> None:
        faiss = load_faiss()
        path = folder / record.file
        # FAISS trusts what it reads: a damaged file could end the process.
        if not sound(folder, record):
            raise SearchError(f"{path} is missing or damaged; index the gallery again")
        flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
        self._index = faiss.read_index(str(path), flags)
        self._index.nprobe = record.probes

    def __call__(
        self, query: Float32[np.ndarray, "d"], top: int, *, minimum: float = -2.0
    ) -> Found:
        """See `ExactSearch`; matches and lowest cover the found rows only."""
        scores, rows = self._index.search(query[None], min(top, self._index.ntotal))
        there = rows[0] >= 0
        scores, rows = scores[0][there], rows[0][there].astype(np.int64)
        lowest, highest = float(scores.min()), float(scores.max())
        keep = scores >= minimum
        return Found(rows[keep], scores[keep], int(keep.sum()), lowest, highest)


def sound(folder: Path, record: FaissRecord) -> bool:
    """Whether the FAISS index of an index is as it was written."""
    path = folder / record.file
    return path.is_file() and _checksum(path) == record.checksum


def _checksum(path: Path) -> str:
    return checksum([np.memmap(path, np.uint8, "r")]) if path.stat().st_size else ""


def _fewest_probes(
    made: Any,
    find: ExactSearch,
    queries: Sequence[Float32[np.ndarray, "_ d"]],
    cells: int,
) -> tuple[int, float]:
    """Double the visited cells until both kinds of queries have the wanted recall."""
    exact = [[set(find(q, TOP).rows.tolist()) for q in each] for each in queries]
    made.nprobe = 1
    while True:
        found = [made.search(each, TOP)[1].tolist() for each in queries]
        recalls = [recall(*each) for each in zip(found, exact, strict=True)]
        if min(recalls) >= RECALL_WANTED or made.nprobe >= cells:
            return made.nprobe, min(recalls)
        made.nprobe = min(2 * made.nprobe, cells)


def recall(found: Sequence[Sequence[int]], exact: Sequence[set[int]]) -> float:
    """Return the share of the exact rows of all queries that were found."""
    pairs = zip(found, exact, strict=True)
    return sum(len(set(rows) & best) for rows, best in pairs) / sum(map(len, exact))


def sample(shards: Sequence[Shard], count: int) -> Float32[np.ndarray, "count d"]:
    """Take rows at equal distances across all shards."""
    ends = np.cumsum([len(shard.rows) for shard in shards])
    chosen = np.linspace(0, ends[-1] - 1, count).astype(np.int64)
    inside = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    starts = ends - [len(shard.rows) for shard in shards]
    rows = zip(shards, inside, starts, strict=True)
    return np.concatenate([shard.unit(each - start) for shard, each, start in rows])
