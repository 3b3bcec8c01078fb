# SPDX-License-Identifier: Apache-2.0
"""The benchmark compares equals: ours and NumPy find the same pictures."""

import os

import numpy as np

from benchmarks import search as benchmark
from fmfa_jax.search import ExactSearch
from fmfa_jax.search.shards import open_shard


def test_ours_and_numpy_find_the_same(tmp_path):
    gallery, queries = benchmark.features(700, 5)
    np.testing.assert_allclose(np.linalg.norm(gallery, axis=1), 1, atol=1e-5)
    paths = benchmark.write(tmp_path, gallery, "float32")
    find = ExactSearch([open_shard(path) for path in paths])
    for query in queries:
        wanted = benchmark.numpy_top(gallery, query)
        assert find(query, benchmark.TOP).rows.tolist() == wanted.tolist()


def test_every_file_leaves_the_page_cache_before_a_cold_query(tmp_path, monkeypatch):
    gallery, queries = benchmark.features(300, 1)
    paths = benchmark.write(tmp_path, gallery, "float16")
    left = []

    def leave(number, start, length, advice):
        assert (start, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        left.append(os.readlink(f"/proc/self/fd/{number}"))

    monkeypatch.setattr(os, "posix_fadvise", leave)
    assert benchmark.cold(paths, queries[0]).read >= 0
    assert sorted(left) == sorted(map(str, paths))
