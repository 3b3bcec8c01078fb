# SPDX-License-Identifier: Apache-2.0
"""The layers that both towers and the interaction encoder are made of.

A layer computes in the dtype of its input. What must not lose digits (the sums that
blocks add to, norms, softmax, accumulation, weight gradients) is at least float32
whatever comes in.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, DTypeLike, Float, Int

from fmfa_jax.models.config import HEAD_WIDTH

# CLIP's; Flax would take 1e-6.
NORM_EPSILON = 1e-5
# What no backward pass should have to compute again, see `ModelConfig.remat`.
PRODUCT = "product"


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """The dtype for sums over values of `dtype`: float32, or float64 as it is."""
    return jnp.promote_types(dtype, jnp.float32)


def compute_dtype(name: str, params: Float[Array, "..."]) -> jnp.dtype:
    """The operands' dtype for a config's dtype `name`; float64 parameters stay so."""
    if name == "float32":
        return at_least_float32(params.dtype)
    return jnp.dtype(name)


def drawn(shape: tuple[int, ...], std: float) -> nnx.Param:
    """A float32 parameter that the model will draw from N(0, std^2), zero till then.

    The model draws all of them at once: one generator call compiles in a tenth of the
    time that one per parameter takes.
    """
    return nnx.Param(jnp.zeros(shape, jnp.float32), std=std)


@jax.custom_vjp
def project(x: Float[Array, "*rows i"], kernel: Float[Array, "i o"]) -> Array:
    """`x @ kernel` with operands in x's dtype, summed and returned in float32.

    The gradient is written out for bfloat16: left to itself it would multiply a
    float32 cotangent with bfloat16 operands, which no hardware does fast. The weight
    gradient is one contraction over all rows and is never rounded to bfloat16.
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
    """`x * sigmoid(1.702 x)`, the activation that CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, computed in float32; epsilon is CLIP's 1e-5."""

    def __init__(self, width: int, *, stack: tuple[int, ...] = ()):
        self.scale = nnx.Param(jnp.ones((*stack, width), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((*stack, width), jnp.float32))

    def __call__(self, x: Float[Array, "*rows w"]) -> Float[Array, "*rows w"]:
        """Normalise each row; the result has x's dtype."""
        wide = x.astype(at_least_float32(x.dtype))
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.mean(centred * centred, -1, keepdims=True)
        normed = centred * lax.rsqrt(variance + NORM_EPSILON)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class Linear(nnx.Module):
    """`x @ kernel + bias`; with `stack`, as many layers as stacked parameters say."""

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
        """The product, its bias added in float32, in x's dtype."""
        return checkpoint_name(self.wide(x).astype(x.dtype), PRODUCT)

    def wide(self, x: Float[Array, "*rows i"]) -> Float[Array, "*rows o"]:
        """The same, left in float32: for logits."""
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
        query: one row per output position.
        key: one row per position that is looked at.
        value: what those positions hold.
        mask: "none", or "causal" for positions that see only themselves and the past.
        lengths: of each row's keys, at least 1; those beyond are not looked at. None:
            all are.
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
    """A fused kernel (cuDNN) exists for half precision on NVIDIA only."""
    return dtype == jnp.bfloat16 and jax.default_backend() == "gpu"


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def softmax_mix(
    query: Float[Array, "b h t c"],
    key: Float[Array, "b h s c"],
    value: Float[Array, "b h s c"],
    lengths: Int[Array, " b"] | None,
    mask: str,
) -> Float[Array, "b h t c"]:
    """`softmax(query key^T / sqrt(c)) value` of each head; masks as in `attend`.

    The gradient is written out for the sake of the order of axes: every product of
    `jax.nn.dot_product_attention` that meets the [t,s] scores turns them round first,
    which on a CPU takes as long as the product. And as in `project`, bfloat16 operands
    meet bfloat16 operands.
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
    del mask  # What was hidden has no share, and so no gradient.
    query, key, value, shares, mixed = kept
    wide = at_least_float32(value.dtype)
    # Of softmax's gradient, what all columns of a row have in common.
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
    """One product for each head, over an axis of each side, summed in float32."""
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
        """Self-attention over the rows of x; masks as in `attend`."""
        query, key, value = jnp.split(self.qkv(x), 3, axis=-1)
        return self.out(attend(query, key, value, mask=mask, lengths=lengths))

    def cross(
        self, x: Float[Array, "b t w"], context: Float[Array, "b s w"]
    ) -> Float[Array, "b t w"]:
        """Each row of x looks at all rows of `context`."""
        width = x.shape[-1]
        kernel, bias = self.qkv.kernel[...], self.qkv.bias[...]
        query = project(x, kernel[:, :width]) + bias[:width]
        pair = project(context, kernel[:, width:]) + bias[width:]
        key, value = jnp.split(pair.astype(x.dtype), 2, axis=-1)
        return self.out(attend(query.astype(x.dtype), key, value, mask="none"))


class Mlp(nnx.Module):
    """Two layers with QuickGELU between them, four times as wide inside."""

    def __init__(self, width: int, *, out_std: float, stack: tuple[int, ...]):
        up_std = (2 * width) ** -0.5
        self.up = Linear(width, 4 * width, std=up_std, stack=stack)
        self.down = Linear(4 * width, width, std=out_std, stack=stack)

    def __call__(self, x: Float[Array, "b t w"]) -> Float[Array, "b t w"]:
        """Applied to each position alone."""
        return self.down(quick_gelu(self.up(x)))


# Or what cuDNN made, whose kernel cannot name what it makes.
_keeps_products = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.save_only_these_names(PRODUCT),
    lambda primitive, *_, **__: primitive.name.startswith("dot_product_attention"),
)


class Blocks(nnx.Module):
    """A stack of pre-norm transformer blocks, run by one `lax.scan`.

    Every parameter has a leading axis of layers, so the program that is compiled
    holds one block whatever the depth.
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
            x: what the blocks add to; it stays as wide as it comes, float32 or more.
            dtype: what they compute in.
            mask: as in `attend`.
            remat: as in `ModelConfig`.
            lengths: as in `attend`.
        """

        def body(x: Array, block: "Blocks") -> tuple[Array, None]:
            return block.one(x, dtype, mask=mask, lengths=lengths), None

        if remat != "none":
            policy = _keeps_products if remat == "elementwise" else None
            # The scan keeps iterations apart already; CSE barriers would only cost.
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
        """One block; its parameters must have lost their leading axis."""
        x = x + self.attention(self.ln_1(x).astype(dtype), mask=mask, lengths=lengths)
        return x + self.mlp(self.ln_2(x).astype(dtype))
