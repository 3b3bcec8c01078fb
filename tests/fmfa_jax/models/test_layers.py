# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fmfa_jax.models import layers
from fmfa_jax.models.layers import Blocks, LayerNorm, attend, project


def draw(seed, *shape):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


@pytest.fixture(scope="module")
def blocks():
    made = Blocks(64, 2)
    state = nnx.to_pure_dict(nnx.state(made))
    leaves, structure = jax.tree.flatten(state)
    values = [0.1 * draw(i, *x.shape) + x for i, x in enumerate(leaves)]
    graph, _ = nnx.split(made)
    return nnx.merge(graph, jax.tree.unflatten(structure, values))


def unrolled(blocks, x, *, mask):
    """Slow oracle of the scan: a loop over the layers' own parameters."""
    for layer in range(blocks.ln_1.scale[...].shape[0]):
        one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], blocks)
        x = one.one(x, x.dtype, mask=mask)
    return x


def value_and_gradients(run, blocks, x):
    def summed(blocks, x):
        out = run(blocks, x)
        return jnp.sum(jnp.sin(out)), out

    gradient = jax.value_and_grad(summed, argnums=(0, 1), has_aux=True)
    # Machine code made in a hurry: the same operations, less time to compile.
    hasty = {"xla_backend_optimization_level": 0}
    return jax.jit(gradient, compiler_options=hasty)(blocks, x)


@pytest.fixture(scope="module")
def loop(blocks):
    def run(blocks, x):
        return unrolled(blocks, x, mask="causal")

    return value_and_gradients(run, blocks, draw(9, 2, 5, 64))


@pytest.mark.parametrize("remat", ["none", "elementwise", "full"])
def test_scanned_blocks_equal_a_loop_in_value_and_gradient(blocks, loop, remat):
    def scan(blocks, x):
        return blocks(x, x.dtype, mask="causal", remat=remat)

    (_, fast), fast_gradients = value_and_gradients(scan, blocks, draw(9, 2, 5, 64))
    (_, slow), slow_gradients = loop
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-5)
    pairs = zip(
        jax.tree.leaves(fast_gradients), jax.tree.leaves(slow_gradients), strict=True
    )
    for fast, slow in pairs:
        np.testing.assert_allclose(fast, slow, rtol=1e-3, atol=1e-4)


def naive_attention(query, key, value, *, causal):
    batch, targets, width = query.shape
    query, key, value = np.asarray(query), np.asarray(key), np.asarray(value)
    out = np.zeros_like(query)
    for b in range(batch):
        for head in range(0, width, 64):
            part = slice(head, head + 64)
            for t in range(targets):
                seen = t + 1 if causal else key.shape[1]
                scores = key[b, :seen, part] @ query[b, t, part] / 8
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out[b, t, part] = weights @ value[b, :seen, part]
    return out


@pytest.mark.parametrize("mask", ["none", "causal"])
def test_attention_equals_a_loop(mask):
    query, key, value = draw(0, 2, 5, 128), draw(1, 2, 5, 128), draw(2, 2, 5, 128)
    np.testing.assert_allclose(
        attend(query, key, value, mask=mask),
        naive_attention(query, key, value, causal=mask == "causal"),
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


def test_fused_attention_is_for_half_precision_on_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert layers._has_fused_attention(jnp.bfloat16)
    assert not layers._has_fused_attention(jnp.float32)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not layers._has_fused_attention(jnp.bfloat16)


def jax_attention(query, key, value, mask, lengths):
    """JAX's own, with the axes that `softmax_mix` has."""
    heads = [x.swapaxes(1, 2) for x in (query, key, value)]
    mixed = jax.nn.dot_product_attention(
        *heads, is_causal=mask == "causal", key_value_seq_lengths=lengths
    )
    return mixed.swapaxes(1, 2)


@pytest.mark.parametrize("lengths", [None, (1, 4)])
@pytest.mark.parametrize("mask", ["none", "causal"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)]
)
def test_attention_and_its_gradients_equal_those_of_jax(
    mask, dtype, tolerance, lengths
):
    sources = 6 if mask == "causal" else 7
    query, cotangent = draw(0, 2, 3, 6, 64), draw(3, 2, 3, 6, 64)
    key, value = draw(1, 2, 3, sources, 64), draw(2, 2, 3, sources, 64)
    given = [x.astype(dtype) for x in (query, key, value, cotangent)]
    if lengths:
        lengths = jnp.asarray(lengths)
    found, pull = jax.vjp(lambda *x: layers.softmax_mix(*x, lengths, mask), *given[:3])
    wanted, reference = jax.vjp(
        lambda *x: jax_attention(*x, mask, lengths),
        *(x.astype(jnp.float32) for x in given[:3]),
    )
    results = found, *pull(given[3])
    for ours, theirs in zip(
        results, (wanted, *reference(given[3].astype(jnp.float32))), strict=True
    ):
        assert ours.dtype == dtype
        error = jnp.linalg.norm(ours.astype(jnp.float32) - theirs)
        assert error < tolerance * jnp.linalg.norm(theirs)


def test_attention_of_large_scores_stays_finite():
    query = 1e3 * draw(0, 1, 1, 4, 64)
    found, pull = jax.vjp(lambda x: layers.softmax_mix(x, x, x, None, "causal"), query)
    assert jnp.isfinite(found).all()
    assert all(jnp.isfinite(x).all() for x in pull(jnp.ones_like(found)))
