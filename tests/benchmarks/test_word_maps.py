# SPDX-License-Identifier: Apache-2.0
"""The shares of word maps that lie on what words name, against pixels."""

import numpy as np

from benchmarks import word_maps
from tests.tiny_model import tiny_model

CONFIG = tiny_model()  # 4 x 2 patches of 8 x 8 pixels


def test_the_share_is_that_of_pixels():
    """Weights spread evenly over the pixels of their patches."""
    rng = np.random.default_rng(0)
    mask = np.zeros(CONFIG.image_size, bool)
    mask[5:19, 3:12] = True
    weights = rng.random(8)
    on, total = 0.0, 0.0
    for row, column in np.ndindex(mask.shape):
        weight = weights[2 * (row // 8) + column // 8] / 64
        on += weight * mask[row, column]
        total += weight
    covered = word_maps.coverage(mask, CONFIG)
    share, area, best, _ = word_maps.score(weights, covered)
    np.testing.assert_allclose([share, area], [on / total, mask.mean()], rtol=1e-6)
    assert best == covered.max() == 5 * 8 / 64


def test_a_mask_of_a_larger_picture_is_averaged():
    mask = np.zeros((96, 48), bool)
    mask[:24, :12] = True
    np.testing.assert_allclose(word_maps.coverage(mask, CONFIG), [0.5] + [0] * 7)


def test_a_peak_is_on_the_thing_or_beside_it():
    covered = np.array([1, 0.5, 0.25, 0])
    peaks = [word_maps.score(np.eye(4)[at], covered)[3] for at in range(4)]
    assert peaks == [True, True, False, False]
    share, area, *_ = word_maps.score(np.zeros(4), covered)
    assert share == area == 0.4375
