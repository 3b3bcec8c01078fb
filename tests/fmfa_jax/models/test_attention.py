# SPDX-License-Identifier: Apache-2.0
"""Attention against loops and JAX's own, and the fused kernel as far as a CPU shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as questions

from fmfa_jax.models import attention
from fmfa_jax.models.attention import attend, softmax_mix


def draw(seed, *shape):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


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


@pytest.mark.parametrize(
    ("rows", "keys", "mask"),
    [
        (193, 193, "none"),  # 384 x 128
        (577, 577, "none"),  # ViT-L/14 at 336
        (33, 33, "none"),  # the demo
        (77, 77, "causal"),
        (48, 48, "causal"),  # a caption bucket
        (77, 193, "none"),  # words on patches
    ],
)
def test_training_with_fused_attention_lowers_for_nvidia(monkeypatch, rows, keys, mask):
    """To the real kernel, with JAX's own questions about the hardware answered."""
    monkeypatch.setattr(questions, "check_cudnn_version", lambda: 90800)
    monkeypatch.setattr(questions, "check_compute_capability", lambda wanted: True)
    monkeypatch.setattr(
        questions, "is_cuda_compute_capability_equal", lambda wanted: False
    )

    def loss(*given):
        mixed = attention.fused_attend(*given, mask=mask)
        return mixed.astype(jnp.float32).sum()

    query = jax.ShapeDtypeStruct((2, rows, 128), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((2, keys, 128), jnp.bfloat16)
    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    program = step.trace(query, key, key).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmha" in program
    assert "Backward" in program


@pytest.mark.parametrize("lengths", [None, (1, 4)])
@pytest.mark.parametrize(
    ("rows", "keys", "mask"), [(5, 5, "causal"), (5, 7, "none"), (6, 6, "none")]
)
def test_padding_to_even_lengths_changes_nothing(rows, keys, mask, lengths):
    """The oracle is our own attention, which pads nothing."""
    query, cotangent = draw(0, 2, rows, 128), draw(3, 2, rows, 128)
    key, value = draw(1, 2, keys, 128), draw(2, 2, keys, 128)
    if lengths:
        lengths = jnp.asarray(lengths)

    def padded(*given):
        return attention.fused_attend(
            *given, mask=mask, lengths=lengths, implementation="xla"
        )

    def plain(*given):
        return attend(*given, mask=mask, lengths=lengths)

    found, pull = jax.vjp(padded, query, key, value)
    wanted, reference = jax.vjp(plain, query, key, value)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for ours, theirs in zip(pull(cotangent), reference(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


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
    found, pull = jax.vjp(lambda *x: softmax_mix(*x, lengths, mask), *given[:3])
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
    found, pull = jax.vjp(lambda x: softmax_mix(x, x, x, None, "causal"), query)
    assert jnp.isfinite(found).all()
    assert all(jnp.isfinite(x).all() for x in pull(jnp.ones_like(found)))
