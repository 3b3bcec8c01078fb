# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fmfa_jax.models.attention import to_even_length
from fmfa_jax.models.config import Compute
from fmfa_jax.models.layers import Blocks, LayerNorm, project


def draw(seed, *shape):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


def drawn_blocks(**compute):
    made = Blocks(64, 2, compute=Compute(**compute))
    state = nnx.to_pure_dict(nnx.state(made))
    leaves, structure = jax.tree.flatten(state)
    values = [0.1 * draw(i, *x.shape) + x for i, x in enumerate(leaves)]
    graph, _ = nnx.split(made)
    return nnx.merge(graph, jax.tree.unflatten(structure, values))


def unrolled(blocks, x, *, mask):
    """Slow oracle of the scan: a loop over the layers' own parameters."""
    for layer in range(blocks.ln_1.scale[...].shape[0]):
        one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], blocks)
        x = one.one(x, mask=mask)
    return x


def value_and_gradients(run, blocks, x):
    def summed(blocks, x):
        out = run(blocks, x)
        return jnp.sum(jnp.sin(out)), out

    gradient = jax.value_and_grad(summed, argnums=(0, 1), has_aux=True)
    return jax.jit(gradient)(blocks, x)


@pytest.fixture(scope="module")
def loop():
    def run(blocks, x):
        return unrolled(blocks, x, mask="causal")

    return value_and_gradients(run, drawn_blocks(), draw(9, 2, 5, 64))


@pytest.mark.parametrize(
    "compute",
    [
        {"remat": "none"},
        {"remat": "elementwise"},
        {"remat": "full"},
        {"remat": "full", "scan_unroll": 2},
    ],
)
def test_scanned_blocks_equal_a_loop_in_value_and_gradient(loop, compute):
    def scan(blocks, x):
        return blocks(x, mask="causal")

    blocks = drawn_blocks(**compute)
    (_, fast), fast_gradients = value_and_gradients(scan, blocks, draw(9, 2, 5, 64))
    (_, slow), slow_gradients = loop
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-5)
    pairs = zip(
        jax.tree.leaves(fast_gradients), jax.tree.leaves(slow_gradients), strict=True
    )
    for fast, slow in pairs:
        np.testing.assert_allclose(fast, slow, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mask", ["none", "causal"])
def test_rows_beyond_the_lengths_change_nothing(mask):
    """What cuDNN's even lengths rest on."""
    blocks, x = drawn_blocks(), draw(9, 2, 5, 64)
    padded, lengths = to_even_length(x, None)
    assert padded.shape == (2, 6, 64) and lengths.tolist() == [5, 5]
    np.testing.assert_allclose(
        blocks(padded.at[:, 5].set(9.0), mask=mask, lengths=lengths)[:, :5],
        blocks(x, mask=mask),
        rtol=1e-5,
        atol=1e-5,
    )


def test_layer_norm_takes_clips_epsilon():
    x = jnp.asarray([[1e-3, -1e-3, 1e-3, -1e-3]])
    expected = x / np.sqrt(1e-6 + 1e-5)
    np.testing.assert_allclose(LayerNorm(4)(x), expected, rtol=1e-5)


def test_layer_norm_of_bfloat16_is_computed_in_float32():
    # In bfloat16 itself, 256 + small differences would all be 256.
    x = jnp.asarray([[256, 258, 260, 262]], jnp.bfloat16)
    wide = LayerNorm(4)(x.astype(jnp.float32))
    half = LayerNorm(4)(x)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, wide.astype(jnp.bfloat16))


def test_projection_gradients_equal_the_plain_products():
    x, kernel, cotangent = draw(0, 2, 3, 6), draw(1, 6, 4), draw(2, 2, 3, 4)
    _, ours = jax.vjp(project, x, kernel)
    _, plain = jax.vjp(jnp.matmul, x, kernel)
    for got, expected in zip(ours(cotangent), plain(cotangent), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_weight_gradient_of_bfloat16_is_summed_and_kept_in_float32():
    x = draw(0, 64, 4).astype(jnp.bfloat16)
    kernel, cotangent = draw(1, 4, 3), draw(2, 64, 3)
    out, pull = jax.vjp(project, x, kernel)
    x_gradient, kernel_gradient = pull(cotangent)
    assert (out.dtype, kernel_gradient.dtype) == (jnp.float32, jnp.float32)
    assert x_gradient.dtype == jnp.bfloat16
    rounded = np.asarray(cotangent.astype(jnp.bfloat16), np.float32)
    exact = np.asarray(x, np.float32).T @ rounded
    np.testing.assert_allclose(kernel_gradient, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wide", [True, False])
def test_products_in_the_compute_dtype_err_by_its_rounding(wide):
    """The sums are float32; only what leaves the matrix unit is rounded."""
    x, kernel = draw(0, 2, 3, 256).astype(jnp.bfloat16), draw(1, 256, 4)
    out, pull = jax.vjp(
        lambda *given: project(*given, Compute(products="compute"), wide), x, kernel
    )
    exact, reference = jax.vjp(project, x, kernel)
    assert out.dtype == (jnp.float32 if wide else jnp.bfloat16)
    np.testing.assert_array_equal(out, exact.astype(out.dtype))
    gradients = pull(out), reference(out.astype(jnp.float32))
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_array_equal(ours, theirs)
