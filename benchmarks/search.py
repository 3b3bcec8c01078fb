# SPDX-License-Identifier: Apache-2.0
r"""Exact search of a large gallery, beside NumPy and a flat FAISS index.

    python -m benchmarks.search                     # 1M pictures, width 512
    python -m benchmarks.search --pictures 100000

Each storage is written to the disk as `index` writes it, opened anew and asked single
sentences, as a person would; the peers hold float32 rows in memory. All candidates take
turns in one process. Recall is recall@10 against NumPy's float32 ranking.

The rows are made around centres of people with a common offset, as CLIP's are: the
cosines of a gallery then lie as close together as real ones do.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import common
from fmfa_jax.search import ExactSearch
from fmfa_jax.search.approximate import load_faiss
from fmfa_jax.search.shards import SHARD_ROWS, Part, Stamp, open_shard, write_shard
from fmfa_jax.search.store import STORAGES, SearchError

WIDTH, TOP = 512, 10
_AT_ONCE = 65536


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=500, help="for recall")
    parser.add_argument("--repeats", type=int, default=15, help="for time")
    parser.add_argument("--folder", help="where to write; default: temporary")
    options = parser.parse_args()
    gallery, queries = features(options.pictures, options.queries)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        _measure(Path(folder), gallery, queries, options.repeats)


def features(pictures: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Make unit rows of pictures, and of sentences about some of the people."""
    rng = np.random.default_rng(0)
    offset = rng.standard_normal(WIDTH, np.float32)
    centres = rng.standard_normal((max(1, pictures // 4), WIDTH), np.float32)
    gallery = np.empty((pictures, WIDTH), np.float32)
    for first in range(0, pictures, _AT_ONCE):
        rows = gallery[first : first + _AT_ONCE]
        person = np.arange(first, first + len(rows)) % len(centres)
        rows[...] = rng.standard_normal(rows.shape, np.float32)
        rows += centres[person] + offset
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    person = rng.integers(len(centres), size=queries)
    asked = centres[person] + 2 * rng.standard_normal((queries, WIDTH), np.float32)
    return gallery, asked / np.linalg.norm(asked, axis=1, keepdims=True)


def write(folder: Path, gallery: np.ndarray, storage: str) -> list[Path]:
    """Write the shards of an index."""
    folders = []
    for first in range(0, len(gallery), SHARD_ROWS):
        rows = gallery[first : first + SHARD_ROWS]
        stamps = tuple(Stamp(f"{first + i:09d}.jpg", 0, 0) for i in range(len(rows)))
        folders.append(folder / storage / f"{first:09d}")
        write_shard(folders[-1], Part(rows, stamps), storage)
    return folders


def _measure(
    folder: Path, gallery: np.ndarray, queries: np.ndarray, repeats: int
) -> None:
    finders, opened, size = {}, {}, {}
    for storage in STORAGES:
        paths = write(folder, gallery, storage)
        start = time.perf_counter()
        finders[f"ours, {storage}"] = ExactSearch([open_shard(p) for p in paths])
        opened[f"ours, {storage}"] = time.perf_counter() - start
        files = (f for path in paths for f in path.iterdir())
        size[f"ours, {storage}"] = sum(f.stat().st_size for f in files) / 1e9
    answers = {
        name: lambda query, find=find: find(query, TOP).rows
        for name, find in finders.items()
    }
    answers["NumPy, float32 in memory"] = lambda query: numpy_top(gallery, query)
    flat = _faiss(gallery)
    if flat is not None:
        answers["FAISS flat, float32 in memory"] = lambda q: flat.search(q[None], TOP)[
            1
        ][0]
    turn = iter(range(10**9))

    def timed(answer):
        return lambda: answer(queries[next(turn) % len(queries)])

    seconds = common.alternate(
        {name: timed(answer) for name, answer in answers.items()},
        repeats=repeats,
        warmup=3,
    )
    _show(gallery, queries, answers, seconds, opened, size)


def numpy_top(gallery: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Find the nearest rows as one would by hand: product, partition, sort."""
    cosines = gallery @ query
    top = np.argpartition(-cosines, TOP)[:TOP]
    return top[np.argsort(-cosines[top], kind="stable")]


def _faiss(gallery: np.ndarray):
    try:
        flat = load_faiss().IndexFlatIP(WIDTH)
    except SearchError as error:
        print(f"without FAISS: {error}")
        return None
    flat.add(gallery)
    return flat


def _show(gallery, queries, answers, seconds, opened, size) -> None:
    wanted = [set(numpy_top(gallery, query).tolist()) for query in queries]
    peer = seconds["NumPy, float32 in memory"]
    rows = [
        (
            name,
            f"{1e3 * taken:.0f}",
            f"{taken / peer:.2f}",
            f"{_recall(answers[name], queries, wanted):.4f}" if name in opened else "",
            f"{1e3 * opened[name]:.0f}" if name in opened else "",
            f"{size[name]:.2f}" if name in size else "",
        )
        for name, taken in seconds.items()
    ]
    for first in range(0, len(gallery), _AT_ONCE):
        part = gallery[first : first + _AT_ONCE]
        part[...] = part.astype(np.float16)
    rounded = _recall(lambda query: numpy_top(gallery, query), queries, wanted)
    common.show(
        f"Exact search, one sentence, {len(gallery)} pictures x {WIDTH}",
        ("", "ms a query", "x NumPy", "recall@10", "ms to open", "GB on disk"),
        rows,
        notes=[
            "Medians of candidates that take turns; files in the page cache; recall"
            f" over {len(queries)} queries.",
            f"Rows rounded to float16, which is not offered: recall@10 {rounded:.4f}.",
        ],
    )


def _recall(answer, queries: np.ndarray, wanted: list[set[int]]) -> float:
    hits = [
        len(set(answer(query).tolist()) & best)
        for query, best in zip(queries, wanted, strict=True)
    ]
    return sum(hits) / TOP / len(queries)


if __name__ == "__main__":
    main()
