# SPDX-License-Identifier: Apache-2.0
r"""Exact search of a large gallery, beside NumPy and a flat FAISS index.

    python -m benchmarks.search                     # 1M pictures, width 512
    python -m benchmarks.search --pictures 100000

Each storage is written to disk as `index` writes it, opened again and asked single
sentences, as a person would; the peers hold float32 rows in memory. All candidates take
turns in one process. Recall is recall@10 against NumPy's float32 ranking. A person also
waits for the text tower: it is measured with CLIP ViT-B/16's, randomly initialised.
Cold: the files are evicted from the page cache before they are opened, so that the
first query reads them from disk.

The rows lie around centres of people with a common offset, as CLIP's do: the cosines of
a gallery are then as close together as real ones.
"""

import argparse
import gc
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks import common
from fmfa_jax import models, weights
from fmfa_jax.search import ExactSearch, IndexModel, open_model
from fmfa_jax.search.approximate import load_faiss
from fmfa_jax.search.shards import SHARD_ROWS, Part, Stamp, open_shard, write_shard
from fmfa_jax.search.store import STORAGES, SearchError

WIDTH, TOP = 512, 10
SENTENCE = "a man in a red jacket with a black backpack"
COLD_ROUNDS = 3
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
    paths = []
    for first in range(0, len(gallery), SHARD_ROWS):
        rows = gallery[first : first + SHARD_ROWS]
        stamps = tuple(Stamp(f"{first + i:09d}.jpg", 0, 0) for i in range(len(rows)))
        paths.append(folder / storage / f"{first:09d}.safetensors")
        write_shard(paths[-1], Part(rows, stamps), storage)
    return paths


@dataclass(frozen=True)
class Cold:
    """The first query after the files have left the page cache.

    Attributes:
        opened: Seconds to open.
        answered: Seconds for the first query after that.
        read: Bytes that came from the disk.
    """

    opened: float
    answered: float
    read: int


def cold(paths: Sequence[Path], query: np.ndarray) -> Cold:
    """Evict shards that nothing has mapped from the page cache, and ask them once."""
    gc.collect()  # what was mapped before cannot leave
    for path in paths:
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
    start = time.perf_counter()
    find = ExactSearch([open_shard(path) for path in paths])
    opened = time.perf_counter() - start
    find(query, TOP)
    answered = time.perf_counter() - start - opened
    blocks = resource.getrusage(resource.RUSAGE_SELF).ru_inblock - before
    return Cold(opened, answered, 512 * blocks)


def text_encoder(folder: Path) -> IndexModel:
    """Make CLIP ViT-B/16's text tower, beside an image tower of one layer."""
    config = replace(models.PRESETS["vit-b-16"], image_layers=1)
    path = folder / "model.safetensors"
    weights.save_native(path, models.init_params(config), config)
    return open_model(path, tokenizer="clip")


def _measure(
    folder: Path, gallery: np.ndarray, queries: np.ndarray, repeats: int
) -> None:
    paths = {s: write(folder, gallery, s) for s in STORAGES}
    first = {}
    for storage, shards in paths.items():
        cold(shards, queries[0])  # compiles
        rounds = [cold(shards, queries[0]) for _ in range(COLD_ROUNDS)]
        first[f"ours, {storage}"] = Cold(
            statistics.median(each.opened for each in rounds),
            statistics.median(each.answered for each in rounds),
            min(each.read for each in rounds),
        )
    gc.collect()
    finders = {
        f"ours, {storage}": ExactSearch([open_shard(path) for path in shards])
        for storage, shards in paths.items()
    }
    answers = {
        name: lambda query, find=find: find(query, TOP).rows
        for name, find in finders.items()
    }
    encoder = text_encoder(folder)
    answers["text tower alone"] = lambda _: encoder.sentences([SENTENCE])[0]
    for name, find in finders.items():
        answers[f"{name}, from the sentence"] = lambda _, find=find: (
            find(encoder.sentences([SENTENCE])[0], TOP).rows
        )
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
    _show(gallery, queries, answers, seconds, first)


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


def _show(gallery, queries, answers, seconds, first) -> None:
    wanted = [set(numpy_top(gallery, query).tolist()) for query in queries]
    peer = seconds["NumPy, float32 in memory"]
    rows = []
    for name, taken in seconds.items():
        row = [name, f"{1e3 * taken:.0f}", f"{taken / peer:.2f}", "", "", "", ""]
        if name in first:
            row[3] = f"{_recall(answers[name], queries, wanted):.4f}"
            row[4] = f"{1e3 * first[name].opened:.0f}"
            row[5] = f"{1e3 * first[name].answered:.0f}"
            row[6] = f"{first[name].read / 1e9:.2f}"
        rows.append(tuple(row))
    common.show(
        f"Exact search, one sentence, {len(gallery)} pictures x {WIDTH}",
        (
            "",
            "ms a query",
            "x NumPy",
            "recall@10",
            "cold: ms to open",
            "cold: ms the first query",
            "GB that it read",
        ),
        rows,
        notes=[
            "Medians of candidates that take turns, files in the page cache; cold:"
            f" medians of {COLD_ROUNDS}; recall over {len(queries)} queries.",
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
