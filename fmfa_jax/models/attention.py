# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention: cuDNN's fused kernel where it applies, our own elsewhere."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, DTypeLike, Float, Int

from fmfa_jax.models.config import HEAD_WIDTH

# Checkpoint name of values that are expensive to recompute; see `ModelConfig.remat`.
PRODUCT = "product"


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """Return the dtype for sums over values of `dtype`: float32, or float64 for it."""
    return jnp.promote_types(dtype, jnp.float32)


def attend(
    query: Float[Array, "b t w"],
    key: Float[Array, "b s w"],
    value: Float[Array, "b s w"],
    *,
    mask: str,
    lengths: Int[Array, " b"] | None = None,
) -> Float[Array, "b t w"]:
    """Multi-head scaled dot-product attention with heads of 64.

    Args:
        query: One row per output position.
        key: One row per position to attend to.
        value: One row per key.
        mask: "none" or "causal".
        lengths: Number of keys to attend to in each batch row, at least 1. None
            attends to all.
    """
    if _has_fused_attention(query.dtype):
        return fused_attend(query, key, value, mask=mask, lengths=lengths)
    heads = [
        x.reshape(*x.shape[:2], -1, HEAD_WIDTH).swapaxes(1, 2)
        for x in (query, key, value)
    ]
    return softmax_mix(*heads, lengths, mask).swapaxes(1, 2).reshape(query.shape)


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
    batch, rows, keys = query.shape[0], query.shape[1], key.shape[1]
    heads = [
        jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0))).reshape(
            batch, -1, x.shape[2] // HEAD_WIDTH, HEAD_WIDTH
        )
        for x in (query, key, value)
    ]
    mixed = jax.nn.dot_product_attention(
        *heads,
        is_causal=mask == "causal",
        query_seq_lengths=jnp.full(batch, rows, jnp.int32),
        key_value_seq_lengths=(
            jnp.full(batch, keys, jnp.int32) if lengths is None else lengths
        ),
        implementation=implementation,
    )
    return mixed[:, :rows].reshape(query.shape)


def _has_fused_attention(dtype: DTypeLike) -> bool:
    """Whether cuDNN's fused kernel applies: bfloat16 on NVIDIA's Ampere or newer."""
    if dtype != jnp.bfloat16 or jax.default_backend() != "gpu":
        return False
    # ROCm's devices are "gpu", too; their capability is a name such as "gfx90a".
    capability = getattr(jax.devices()[0], "compute_capability", "")
    major = str(capability).partition(".")[0]
    return major.isdigit() and int(major) >= 8


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def softmax_mix(
    query: Float[Array, "b h t c"],
    key: Float[Array, "b h s c"],
    value: Float[Array, "b h s c"],
    lengths: Int[Array, " b"] | None,
    mask: str,
) -> Float[Array, "b h t c"]:
    """Return `softmax(query key^T / sqrt(c)) value` per head; masks as in `attend`.

    The custom gradient keeps the order of axes: every product with the [t,s] scores
    in `jax.nn.dot_product_attention` transposes them first, which on a CPU takes as
    long as the product itself. As in `project`, bfloat16 operands only ever meet
    bfloat16 operands.
    """
    return _mix_forward(query, key, value, lengths, mask)[0]


def _mix_forward(
    query: Array, key: Array, value: Array, lengths: Array | None, mask: str
) -> tuple[Array, tuple[Array, ...]]:
    scores = _product(query * HEAD_WIDTH**-0.5, key, (3, 3))
    if mask == "causal":
        seen = jnp.tri(*scores.shape[2:], dtype=bool)
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    if lengths is not None:
        seen = jnp.arange(scores.shape[3]) < lengths[:, None, None, None]
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    shares = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    shares = checkpoint_name(shares, PRODUCT)
    mixed = _product(shares, value, (3, 2)).astype(value.dtype)
    mixed = checkpoint_name(mixed, PRODUCT)
    return mixed, (query, key, value, shares, mixed)


def _mix_backward(
    mask: str, kept: tuple[Array, ...], cotangent: Array
) -> tuple[Array | None, ...]:
    del mask  # Masked positions have zero weight, and so zero gradient.
    query, key, value, shares, mixed = kept
    wide = at_least_float32(value.dtype)
    # The term of softmax's gradient that all columns of a row share.
    common = jnp.sum(cotangent.astype(wide) * mixed.astype(wide), -1, keepdims=True)
    scores = shares.astype(wide) * (_product(cotangent, value, (3, 3)) - common)
    scores = (scores * HEAD_WIDTH**-0.5).astype(value.dtype)
    gradients = (
        _product(scores, key, (3, 2)),
        _product(scores, query, (2, 2)),
        _product(shares, cotangent, (2, 2)),
    )
    return *(gradient.astype(value.dtype) for gradient in gradients), None


softmax_mix.defvjp(_mix_forward, _mix_backward)


def _product(left: Array, right: Array, contracted: tuple[int, int]) -> Array:
    """Contract one axis of each operand per head, accumulating in float32."""
    first, second = contracted
    return lax.dot_general(
        left,
        right,
        (((first,), (second,)), ((0, 1), (0, 1))),
        preferred_element_type=at_least_float32(left.dtype),
    )
