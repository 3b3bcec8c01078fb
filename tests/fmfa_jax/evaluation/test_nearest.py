# SPDX-License-Identifier: Apache-2.0
"""The running top-k against a sort of the whole matrix."""

import numpy as np
import pytest

from fmfa_jax.evaluation import nearest


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("queries", "gallery", "k"), [(5, 7, 3), (300, 90, 10)])
def test_the_nearest_equal_a_sort(queries: int, gallery: int, k: int) -> None:
    rng = np.random.default_rng(queries)
    text = rng.normal(size=(queries, 12)).astype(np.float32)
    image = rng.normal(size=(gallery, 12)).astype(np.float32)
    cosines = unit(text) @ unit(image).T
    wanted = np.argsort(-cosines, axis=1)[:, :k]
    found = nearest(text, image, k, gallery_block=32)
    np.testing.assert_array_equal(found.index, wanted)
    values = np.take_along_axis(cosines, wanted, axis=1)
    np.testing.assert_allclose(found.similarity, values, atol=1e-6)


def test_fewer_pictures_than_asked_for() -> None:
    """All similarities are negative: the padding, whose cosine is 0, must not win."""
    found = nearest(np.ones((2, 4), np.float32), -np.ones((3, 4), np.float32), 10)
    np.testing.assert_array_equal(found.index, [[0, 1, 2], [0, 1, 2]])
    np.testing.assert_allclose(found.similarity, -1, atol=1e-6)
