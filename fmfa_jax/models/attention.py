# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention: our own, or cuDNN's fused kernel."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, DTypeLike, Float, Int

from fmfa_jax.models.config import HEAD_WIDTH, PORTABLE, Compute

# Checkpoint name of values that are expensive to recompute; see `ModelConfig.remat`.
PRODUCT = "product"


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """Return the dtype for sums over values of `dtype`: float32, or float64 for it."""
    return jnp.promote_types(dtype, jnp.float32)


def product_dtype(compute: Compute, dtype: DTypeLike) -> jnp.dtype:
    """Return the dtype of products whose operands are in `dtype`; see `Compute`."""
    return at_least_float32(dtype) if compute.products == "float32" else dtype


def precision_of(compute: Compute, dtype: DTypeLike) -> lax.Precision:
    """Return the precision of products of such operands; see `Compute`."""
    # Narrow operands are multiplied exactly at any precision.
    wide = jnp.dtype(dtype).itemsize >= 4
    return lax.Precision(compute.precision if wide else "default")


def attend(
    query: Float[Array, "b t w"],
    key: Float[Array, "b s w"],
    value: Float[Array, "b s w"],
    *,
    mask: str,
    lengths: Int[Array, " b"] | None = None,
    compute: Compute = PORTABLE,
) -> Float[Array, "b t w"]:
    """Multi-head scaled dot-product attention with heads of 64.

    Args:
        query: One row per output position.
        key: One row per position to attend to.
        value: One row per key.
        mask: "none" or "causal".
        lengths: Number of keys to attend to in each batch row, at least 1. None
            attends to all.
        compute: How.
    """
    if compute.attention == "cudnn":
        return fused_attend(query, key, value, mask=mask, lengths=lengths)
    heads = [
        x.reshape(*x.shape[:2], -1, HEAD_WIDTH).swapaxes(1, 2)
        for x in (query, key, value)
    ]
    mixed = softmax_mix(*heads, lengths, mask, compute)
    return mixed.swapaxes(1, 2).reshape(query.shape)


def to_even_length(
    x: Float[Array, "b t w"], lengths: Int[Array, " b"] | None
) -> tuple[Float[Array, "b s w"], Int[Array, " b"]]:
    """Pad rows to the even number that cuDNN wants, and count those that matter."""
    batch, rows, _ = x.shape
    if lengths is None:
        lengths = jnp.full(batch, rows, jnp.int32)
    return jnp.pad(x, ((0, 0), (0, rows % 2), (0, 0))), lengths


def fused_attend(
    query: Float[Array, "b t w"],
    key: Float[Array, "b s w"],
    value: Float[Array, "b s w"],
    *,
    mask: str,
    lengths: Int[Array, " b"] | None = None,
    implementation: str = "cudnn",
) -> Float[Array, "b t w"]:
    """`attend` by one fused kernel.

    cuDNN refuses odd lengths in training, so both are padded to even ones. The lengths
    are always passed, which keeps the padding out, and avoids NaN in cuDNN's gradient
    for unpadded key lengths of 64 modulo 128. `implementation` is "cudnn" or "xla",
    whose numbers any backend can compute.
    """
    rows = query.shape[1]
    query, seen = to_even_length(query, None)
    key, lengths = to_even_length(key, lengths)
    value, _ = to_even_length(value, None)
    mixed = jax.nn.dot_product_attention(
        *(x.reshape(*x.shape[:2], -1, HEAD_WIDTH) for x in (query, key, value)),
        is_causal=mask == "causal",
        query_seq_lengths=seen,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return mixed.reshape(query.shape)[:, :rows]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def softmax_mix(
    query: Float[Array, "b h t c"],
    key: Float[Array, "b h s c"],
    value: Float[Array, "b h s c"],
    lengths: Int[Array, " b"] | None,
    mask: str,
    compute: Compute = PORTABLE,
) -> Float[Array, "b h t c"]:
    """Return `softmax(query key^T / sqrt(c)) value` per head; masks as in `attend`.

    The custom gradient keeps the order of axes: every product with the [t,s] scores
    in `jax.nn.dot_product_attention` transposes them first, which on a CPU takes as
    long as the product itself. As in `project`, bfloat16 operands only ever meet
    bfloat16 operands.
    """
    return _mix_forward(query, key, value, lengths, mask, compute)[0]


def _mix_forward(
    query: Array,
    key: Array,
    value: Array,
    lengths: Array | None,
    mask: str,
    compute: Compute,
) -> tuple[Array, tuple[Array, ...]]:
    scores = _scores(query * HEAD_WIDTH**-0.5, key, compute)
    if mask == "causal":
        seen = jnp.tri(*scores.shape[2:], dtype=bool)
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    if lengths is not None:
        seen = jnp.arange(scores.shape[3]) < lengths[:, None, None, None]
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    shares = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    shares = checkpoint_name(shares, PRODUCT)
    mixed = _product(shares, value, (3, 2), compute)
    mixed = checkpoint_name(mixed, PRODUCT)
    return mixed, (query, key, value, shares, mixed)


def _mix_backward(
    mask: str, compute: Compute, kept: tuple[Array, ...], cotangent: Array
) -> tuple[Array | None, ...]:
    del mask  # Masked positions have zero weight, and so zero gradient.
    query, key, value, shares, mixed = kept
    wide = at_least_float32(value.dtype)
    # The term of softmax's gradient that all columns of a row share.
    common = jnp.sum(cotangent.astype(wide) * mixed.astype(wide), -1, keepdims=True)
    scores = shares.astype(wide) * (_scores(cotangent, value, compute) - common)
    scores = (scores * HEAD_WIDTH**-0.5).astype(value.dtype)
    return (
        _product(scores, key, (3, 2), compute),
        _product(scores, query, (2, 2), compute),
        _product(shares, cotangent, (2, 2), compute),
        None,
    )


softmax_mix.defvjp(_mix_forward, _mix_backward)


def _scores(left: Array, right: Array, compute: Compute) -> Array:
    """Multiply every row of `left` by every row of `right` per head, in float32."""
    return lax.dot_general(
        left,
        right,
        (((3,), (3,)), ((0, 1), (0, 1))),
        precision=precision_of(compute, left.dtype),
        preferred_element_type=at_least_float32(left.dtype),
    )


def _product(
    left: Array, right: Array, contracted: tuple[int, int], compute: Compute
) -> Array:
    """Contract one axis of each operand per head; the result has left's dtype."""
    first, second = contracted
    product = lax.dot_general(
        left,
        right,
        (((first,), (second,)), ((0, 1), (0, 1))),
        precision=precision_of(compute, left.dtype),
        preferred_element_type=product_dtype(compute, left.dtype),
    )
    return product.astype(left.dtype)
