# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmfa_jax import models
from fmfa_jax.models.towers import patches_of


@pytest.mark.parametrize(
    ("size", "patch", "stride"),
    [((32, 16), 8, 8), ((30, 17), 8, 8), ((32, 16), 8, 5), ((19, 23), 6, 4)],
)
def test_patches_times_kernel_equal_a_convolution(size, patch, stride):
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(2, *size, 3)).astype(np.float32)
    kernel = rng.normal(size=(patch, patch, 3, 7)).astype(np.float32)
    expected = jax.lax.conv_general_dilated(
        pixels,
        kernel,
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    got = patches_of(jnp.asarray(pixels), patch=patch, stride=stride)
    got = got @ kernel.reshape(-1, 7)
    np.testing.assert_allclose(got, expected.reshape(got.shape), atol=1e-3)


@pytest.fixture(scope="module")
def inputs(tiny):
    rng = np.random.default_rng(1)
    ids = rng.integers(1, tiny.vocab_size - 3, (4, tiny.context_length), np.int32)
    ids[:, 0], ids[:, 5], ids[:, 6:] = tiny.vocab_size - 2, tiny.vocab_size - 1, 0
    labels = np.where(rng.random(ids.shape) < 0.3, ids, 0).astype(np.int32)
    images = rng.integers(0, 256, (4, *tiny.image_size, 3), np.uint8)
    return jnp.asarray(images), jnp.asarray(ids), jnp.asarray(labels)


def outputs(config):
    """Global features, masked logits and a gradient that passes through everything."""

    def run(params, images, ids, labels):
        model = models.bind(config, params)
        image = model.encode_images(models.normalize_images(images))
        text = model.encode_texts(ids)
        logits = model.masked_logits(text, image, labels, 3).logits
        scores = model.identity_logits(models.global_image(image))
        features = models.global_image(image), models.global_text(text, ids)
        return jnp.sum(jnp.sin(logits)) + jnp.sum(jnp.sin(scores)), (features, logits)

    return jax.value_and_grad(run, has_aux=True)


def compiled(config):
    return jax.jit(outputs(config))


@pytest.fixture(scope="module")
def plain(tiny, tiny_params, inputs):
    return jax.device_get(compiled(tiny)(tiny_params, *inputs))


@pytest.fixture(scope="module")
def half(tiny, tiny_params, inputs):
    config = dataclasses.replace(tiny, dtype="bfloat16", remat="full")
    return jax.device_get(compiled(config)(tiny_params, *inputs))


@pytest.fixture(scope="module")
def encode(tiny, tiny_params):
    """(images, ids) -> tokens of both towers."""

    @jax.jit
    def run(images, ids):
        model = models.bind(tiny, tiny_params)
        pixels = models.normalize_images(images)
        return model.encode_images(pixels), model.encode_texts(ids)

    return run


def cosine(one, other):
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return np.sum(one * other, axis=-1) / lengths


def test_remat_reaches_every_stack(tiny, tiny_params, inputs):
    """Equal values are shown for the blocks alone; here, that all three are asked."""
    found = {}
    for remat in ("none", "elementwise", "full"):
        config = dataclasses.replace(tiny, remat=remat)
        program = str(jax.make_jaxpr(outputs(config))(tiny_params, *inputs))
        found[remat] = program.count("policy="), program.count("policy=None")
    assert found["none"] == (0, 0)
    assert found["full"][1] >= 3
    assert found["elementwise"] == (found["full"][0], 0)


def test_bfloat16_towers_stay_close_and_give_float32(half, plain):
    (_, (features, logits)), gradient = half
    (_, (expected, expected_logits)), exact = plain
    for got, want in zip(features, expected, strict=True):
        assert got.dtype == np.float32
        assert cosine(got, want).min() > 0.999
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected_logits, atol=0.1)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True)
    for got, want in pairs:
        assert got.dtype == np.float32
        # Gradients that are zero in exact arithmetic have no direction.
        if np.linalg.norm(want) > 1e-3:
            assert cosine(got.ravel(), want.ravel()) > 0.98


def test_rows_of_a_batch_do_not_mix(encode, inputs):
    images, ids, _ = inputs
    before = encode(images, ids)
    after = encode(images[::-1].at[0].set(0), ids[::-1].at[0].set(1))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one[:3], other[:0:-1], atol=1e-5)


def test_text_is_causal(encode, inputs):
    images, ids, _ = inputs
    (_, before), (_, after) = encode(images, ids), encode(images, ids.at[:, 4].add(1))
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-3


def test_global_text_is_the_end_token(tiny, inputs):
    _, ids, _ = inputs
    tokens = jnp.arange(4.0 * 8 * 2).reshape(4, 8, 2)
    np.testing.assert_array_equal(models.global_text(tokens, ids), tokens[:, 5])


def test_normalised_images_have_clips_statistics():
    levels = jnp.stack([jnp.full((2, 2, 3), v, jnp.uint8) for v in (0, 255)])
    expected = (np.array([[0.0], [1.0]]) - models.IMAGE_MEAN) / models.IMAGE_STD
    np.testing.assert_allclose(
        models.normalize_images(levels)[:, 0, 0], expected, rtol=1e-6
    )


def test_wrong_sizes_are_refused_with_both_numbers(tiny, tiny_params):
    model = models.bind(tiny, tiny_params)
    with pytest.raises(ValueError, match=r"\(32, 16\) and got \(16, 32\)"):
        model.encode_images(jnp.zeros((1, 16, 32, 3)))
    with pytest.raises(ValueError, match="8 positions and got 9"):
        model.encode_texts(jnp.zeros((1, 9), jnp.int32))
