# SPDX-License-Identifier: Apache-2.0
"""What words add to the cosine: against captions and images encoded one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.tokenizer import Word
from fmfa_jax import models
from fmfa_jax.figures import contribution
from tests.tiny_model import tiny_model

CONFIG = tiny_model()
LENGTH, PATCHES = CONFIG.context_length, 8
IDS = np.array([78, 5, 6, 7, 8, 79, 0, 0, 0, 0, 0, 0], np.int32)
WORDS = (Word("red", 1, 2), Word("t-shirt", 2, 4), Word(".", 4, 5))
STEPS = 64


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda x: 0.1 * rng.standard_normal(x.shape, np.float32),
        models.param_shapes(CONFIG),
    )


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(4)
    return rng.integers(0, 256, (*CONFIG.image_size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def rows():
    """The caption, it without each word, and the last of them again: compiled once."""
    each = [IDS, *(contribution.without(IDS, word) for word in WORDS)]
    return jnp.stack(each + each[-1:] * 12)


@pytest.fixture(scope="module")
def cosines(params, rows):
    """Of images (normalized) with the captions: encoders, and lengths by hand."""
    model = models.bind(CONFIG, params)
    encode = jax.jit(lambda images: model.encode_images(images)[:, 0])
    ends = np.asarray(rows).argmax(axis=1)
    texts = np.asarray(model.encode_texts(rows))[np.arange(len(rows)), ends]

    def each(images):
        features = np.asarray(encode(jnp.asarray(images)))
        lengths = np.linalg.norm(features, axis=1)[:, None]
        return features @ texts.T / lengths / np.linalg.norm(texts, axis=1)

    return each


def test_a_caption_loses_all_pieces_of_a_word():
    left = contribution.without(IDS, WORDS[1])
    assert left.tolist() == [78, 5, 8, 79] + [0] * 8 and left.dtype == IDS.dtype


def both(pixels):
    """The image, and one of its mean colour, normalized."""
    flat = np.full_like(pixels, pixels.mean(axis=(0, 1)).round().astype(np.uint8))
    return np.asarray(models.normalize_images(jnp.asarray([pixels, flat])))


def test_patches_divide_what_a_word_adds(params, pixels, rows, cosines):
    """The completeness of integrated gradients: the parts sum to the whole."""
    found, patches = contribution.contributions(
        CONFIG, params, pixels, rows, steps=STEPS
    )
    image, flat = both(pixels)
    here, there = cosines(np.stack([image, flat]))
    np.testing.assert_allclose(found, here[0] - here[1:], atol=1e-5)
    wanted = (here[0] - here[1:]) - (there[0] - there[1:])
    assert np.abs(wanted).max() > 0.005
    np.testing.assert_allclose(patches.sum(axis=1), wanted, atol=1e-5)


def test_the_parts_are_those_of_differences(params, pixels, rows, cosines):
    """A quarter and three quarters of the path, and central differences by patch."""
    image, flat = both(pixels)
    change, step = image - flat, 0.02
    slow = []
    for place in np.ndindex(CONFIG.grid):
        inside = np.zeros_like(image)
        inside[tuple(slice(8 * at, 8 * (at + 1)) for at in place)] = step
        points = [part + s * inside for part in (0.25, 0.75) for s in (-1, 1)]
        found = cosines(np.stack([image - point * change for point in points]))
        gain = (found[0] - found[1] + found[2] - found[3]) / (4 * step)
        slow.append(gain[0] - gain[1:])
    _, patches = contribution.contributions(CONFIG, params, pixels, rows)
    assert np.abs(slow).max() > 0.001
    np.testing.assert_allclose(patches, np.transpose(slow), atol=1e-5)


def test_the_view_keeps_the_patches_that_raise_a_word(params, pixels, rows):
    view = contribution.contribution_maps(CONFIG, params, pixels, IDS, WORDS)
    assert view.words == ("red", "t-shirt", ".") and view.strength.shape == (3,)
    assert view.patches.shape == (3, PATCHES) and view.patches.dtype == np.float32
    found, patches = contribution.contributions(CONFIG, params, pixels, rows)
    patches = np.asarray(patches)[:3]
    np.testing.assert_allclose(view.strength, found[:3], atol=1e-6)
    assert (patches < -1e-4).any()
    np.testing.assert_allclose(view.patches.sum(axis=1), 1, rtol=1e-6)
    for shown, signed in zip(view.patches, patches, strict=True):
        above = np.maximum(signed, 0)
        np.testing.assert_allclose(shown, above / above.sum(), atol=1e-4)


def test_an_image_of_one_colour_gives_empty_maps(params):
    flat = np.full((*CONFIG.image_size, 3), (131, 7, 202), np.uint8)
    view = contribution.contribution_maps(CONFIG, params, flat, IDS, WORDS)
    assert view.patches.shape == (3, PATCHES) and not view.patches.any()
