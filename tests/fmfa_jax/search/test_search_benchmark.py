# SPDX-License-Identifier: Apache-2.0
"""The benchmark compares equals: ours and NumPy find the same pictures."""

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
