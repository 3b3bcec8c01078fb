# SPDX-License-Identifier: Apache-2.0
"""The layers of both towers and the interaction encoder.

A layer computes in the dtype of its input. Whatever must not lose precision (residual
streams, norms, softmax, accumulation, weight gradients) is at least float32.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, DTypeLike, Float, Int

from fmfa_jax.models.config import HEAD_WIDTH

# As in CLIP; Flax defaults to 1e-6.
NORM_EPSILON = 1e-5
# Checkpoint name of values that are expensive to recompute; see `ModelConfig.remat`.
PRODUCT = "product"


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """Return the dtype for sums over values of `dtype`: float32, or float64 for it."""
    return jnp.promote_types(dtype, jnp.float32)


def compute_dtype(name: str, params: Float[Array, "..."]) -> jnp.dtype:
    """Return the dtype to compute in: the config's, unless parameters are float64."""
    if name == "float32":
        return at_least_float32(params.dtype)
    return jnp.dtype(name)


def drawn(shape: tuple[int, ...], std: float) -> nnx.Param:
    """Declare a float32 parameter for the model to draw from N(0, std^2).

    The model draws all of them at once: a single generator call compiles in a tenth
    of the time that one call per parameter takes.
    """
    return nnx.Param(jnp.zeros(shape, jnp.float32), std=std)


@jax.custom_vjp
def project(x: Float[Array, "*rows i"], kernel: Float[Array, "i o"]) -> Array:
    """Return `x @ kernel` with operands in x's dtype, accumulated in float32.

    The custom gradient is for bfloat16: autodiff would multiply a float32 cotangent
    by bfloat16 operands, which is slow on all hardware. The weight gradient is one
    contraction over all rows and is never rounded to bfloat16.
    """
    return jnp.matmul(
        x,
        kernel.astype(x.dtype),
        preferred_element_type=at_least_float32(x.dtype),
    )


def _project_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return project(x, kernel), (x, kernel)


def _project_backward(
    residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    wide = at_least_float32(x.dtype)
    cotangent = cotangent.astype(x.dtype)
    rows = tuple(range(x.ndim - 1))
    x_gradient = lax.dot_general(
        cotangent,
        kernel.astype(x.dtype),
        (((x.ndim - 1,), (1,)), ((), ())),
        preferred_element_type=wide,
    )
    kernel_gradient = lax.dot_general(
        x, cotangent, ((rows, rows), ((), ())), preferred_element_type=wide
    )
    return x_gradient.astype(x.dtype), kernel_gradient.astype(kernel.dtype)


project.defvjp(_project_forward, _project_backward)


def quick_gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Return `x * sigmoid(1.702 x)`, the activation that CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, computed in at least float32."""

    def __init__(self, width: int, *, stack: tuple[int, ...] = ()):
        self.scale = nnx.Param(jnp.ones((*stack, width), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((*stack, width), jnp.float32))

    def __call__(self, x: Float[Array, "*rows w"]) -> Float[Array, "*rows w"]:
        """Normalize each row; the result has x's dtype."""
        wide = x.astype(at_least_float32(x.dtype))
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.mean(centred * centred, -1, keepdims=True)
        normed = centred * lax.rsqrt(variance + NORM_EPSILON)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class Linear(nnx.Module):
    """`x @ kernel + bias`; `stack` adds leading axes to the parameters."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        std: float,
        stack: tuple[int, ...] = (),
    ):
        self.kernel = drawn((*stack, inputs, outputs), std)
        self.bias = nnx.Param(jnp.zeros((*stack, outputs), jnp.float32))

    def __call__(self, x: Float[Array, "*rows i"]) -> Float[Array, "*rows o"]:
        """Apply the layer, adding the bias in float32; the result has x's dtype."""
        return checkpoint_name(self.wide(x).astype(x.dtype), PRODUCT)

    def wide(self, x: Float[Array, "*rows i"]) -> Float[Array, "*rows o"]:
        """Apply the layer and keep the result in float32, for logits."""
        return project(x, self.kernel[...]) + self.bias[...]


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
        heads = [x.reshape(*x.shape[:2], -1, HEAD_WIDTH) for x in (query, key, value)]
        mixed = jax.nn.dot_product_attention(
            *heads,
            is_causal=mask == "causal",
            key_value_seq_lengths=lengths,
            implementation="cudnn",
        )
        return mixed.reshape(query.shape)
    heads = [
        x.reshape(*x.shape[:2], -1, HEAD_WIDTH).swapaxes(1, 2)
        for x in (query, key, value)
    ]
    return softmax_mix(*heads, lengths, mask).swapaxes(1, 2).reshape(query.shape)


def _has_fused_attention(dtype: DTypeLike) -> bool:
    """Whether cuDNN's fused kernel applies: half precision on NVIDIA only."""
    return dtype == jnp.bfloat16 and jax.default_backend() == "gpu"


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


class Attention(nnx.Module):
    """Self- or cross-attention with one fused query/key/value projection."""

    def __init__(
        self,
        width: int,
        *,
        out_std: float,
        stack: tuple[int, ...] = (),
    ):
        self.qkv = Linear(width, 3 * width, std=width**-0.5, stack=stack)
        self.out = Linear(width, width, std=out_std, stack=stack)

    def __call__(
        self,
        x: Float[Array, "b t w"],
        *,
        mask: str,
        lengths: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b t w"]:
        """Attend among the rows of x; masks as in `attend`."""
        query, key, value = jnp.split(self.qkv(x), 3, axis=-1)
        return self.out(attend(query, key, value, mask=mask, lengths=lengths))

    def cross(
        self, x: Float[Array, "b t w"], context: Float[Array, "b s w"]
    ) -> Float[Array, "b t w"]:
        """Let each row of x attend to all rows of `context`."""
        width = x.shape[-1]
        kernel, bias = self.qkv.kernel[...], self.qkv.bias[...]
        query = project(x, kernel[:, :width]) + bias[:width]
        pair = project(context, kernel[:, width:]) + bias[width:]
        key, value = jnp.split(pair.astype(x.dtype), 2, axis=-1)
        return self.out(attend(query.astype(x.dtype), key, value, mask="none"))


class Mlp(nnx.Module):
    """Two linear layers with QuickGELU between them, four times as wide inside."""

    def __init__(self, width: int, *, out_std: float, stack: tuple[int, ...]):
        up_std = (2 * width) ** -0.5
        self.up = Linear(width, 4 * width, std=up_std, stack=stack)
        self.down = Linear(4 * width, width, std=out_std, stack=stack)

    def __call__(self, x: Float[Array, "b t w"]) -> Float[Array, "b t w"]:
        """Apply to each position independently."""
        return self.down(quick_gelu(self.up(x)))


# Also save cuDNN's attention outputs: the fused kernel does not support
# checkpoint_name.
_keeps_products = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.save_only_these_names(PRODUCT),
    lambda primitive, *_, **__: primitive.name.startswith("dot_product_attention"),
)


class Blocks(nnx.Module):
    """A stack of pre-norm transformer blocks, run by one `lax.scan`.

    Every parameter has a leading axis of layers, so the compiled program contains a
    single block at any depth.
    """

    def __init__(self, width: int, layers: int):
        stack = (layers,)
        out_std = width**-0.5 * (2 * layers) ** -0.5
        self.ln_1 = LayerNorm(width, stack=stack)
        self.attention = Attention(width, out_std=out_std, stack=stack)
        self.ln_2 = LayerNorm(width, stack=stack)
        self.mlp = Mlp(width, out_std=out_std, stack=stack)

    def __call__(
        self,
        x: Float[Array, "b t w"],
        dtype: DTypeLike,
        *,
        mask: str,
        remat: str,
        lengths: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b t w"]:
        """Run all blocks.

        Args:
            x: The residual stream, which keeps its dtype of float32 or more.
            dtype: What the blocks compute in.
            mask: See `attend`.
            remat: See `ModelConfig`.
            lengths: See `attend`.
        """

        def body(x: Array, block: "Blocks") -> tuple[Array, None]:
            return block.one(x, dtype, mask=mask, lengths=lengths), None

        if remat != "none":
            policy = _keeps_products if remat == "elementwise" else None
            # scan already separates iterations, so CSE barriers would only cost.
            body = jax.checkpoint(body, prevent_cse=False, policy=policy)
        x, _ = lax.scan(body, x, self)
        return x

    def one(
        self,
        x: Float[Array, "b t w"],
        dtype: DTypeLike,
        *,
        mask: str,
        lengths: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b t w"]:
        """Apply one block, whose parameters have no leading axis of layers."""
        x = x + self.attention(self.ln_1(x).astype(dtype), mask=mask, lengths=lengths)
        return x + self.mlp(self.ln_2(x).astype(dtype))
