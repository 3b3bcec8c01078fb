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
from jaxtyping import Array, Float, Int

from fmfa_jax.models.attention import (
    PRODUCT,
    at_least_float32,
    attend,
    precision_of,
    product_dtype,
    to_even_length,
)
from fmfa_jax.models.config import HEAD_WIDTH, PORTABLE, Compute
from fmfa_jax.models.placement import gathered, rows_in_place

# As in CLIP; Flax defaults to 1e-6.
NORM_EPSILON = 1e-5


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def project(
    x: Float[Array, "*rows i"],
    kernel: Float[Array, "i o"],
    compute: Compute = PORTABLE,
    wide: bool = True,
) -> Array:
    """Return `x @ kernel` with operands in x's dtype, accumulated in float32.

    The custom gradient is for bfloat16: autodiff would multiply a float32 cotangent
    by bfloat16 operands, which is slow on all hardware. The weight gradient is one
    contraction over all rows and is never rounded to bfloat16.

    Args:
        x: Rows.
        kernel: Parameters.
        compute: How.
        wide: The result is at least float32; otherwise `compute.products` decides.
    """
    dtype = at_least_float32(x.dtype) if wide else product_dtype(compute, x.dtype)
    return jnp.matmul(
        x,
        kernel.astype(x.dtype),
        precision=precision_of(compute, x.dtype),
        preferred_element_type=dtype,
    )


def _project_forward(
    x: Array, kernel: Array, compute: Compute, wide: bool
) -> tuple[Array, tuple[Array, Array]]:
    return project(x, kernel, compute, wide), (x, kernel)


def _project_backward(
    compute: Compute, wide: bool, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    del wide
    x, kernel = residuals
    cotangent = cotangent.astype(x.dtype)
    rows = tuple(range(x.ndim - 1))
    dot = functools.partial(lax.dot_general, precision=precision_of(compute, x.dtype))
    x_gradient = dot(
        cotangent,
        kernel.astype(x.dtype),
        (((x.ndim - 1,), (1,)), ((), ())),
        preferred_element_type=product_dtype(compute, x.dtype),
    )
    kernel_gradient = dot(
        x,
        cotangent,
        ((rows, rows), ((), ())),
        preferred_element_type=at_least_float32(x.dtype),
    )
    return x_gradient.astype(x.dtype), kernel_gradient.astype(kernel.dtype)


project.defvjp(_project_forward, _project_backward)


def quick_gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Return `x * sigmoid(1.702 x)`, the activation that CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Return `x * Phi(x)`, exact as `torch.nn.GELU`: open_clip's activation."""
    return jax.nn.gelu(x, approximate=False)


_ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


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
    """`x @ kernel + bias`; `stack` adds leading axes to the parameters.

    How it computes is `compute`'s matter, as in all layers here.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        std: float,
        stack: tuple[int, ...] = (),
        compute: Compute = PORTABLE,
    ):
        self.compute = compute
        self.kernel = drawn((*stack, inputs, outputs), std)
        self.bias = nnx.Param(jnp.zeros((*stack, outputs), jnp.float32))

    def __call__(self, x: Float[Array, "*rows i"]) -> Float[Array, "*rows o"]:
        """Apply the layer, adding the bias in float32; the result has x's dtype."""
        product = project(x, self.kernel[...], self.compute, False)
        return checkpoint_name((product + self.bias[...]).astype(x.dtype), PRODUCT)

    def wide(self, x: Float[Array, "*rows i"]) -> Float[Array, "*rows o"]:
        """Apply the layer and keep the result in float32, for logits."""
        return project(x, self.kernel[...], self.compute) + self.bias[...]


class Attention(nnx.Module):
    """Self- or cross-attention with one fused query/key/value projection."""

    def __init__(
        self,
        width: int,
        *,
        out_std: float,
        stack: tuple[int, ...] = (),
        compute: Compute = PORTABLE,
    ):
        self.compute = compute
        make = functools.partial(Linear, stack=stack, compute=compute)
        self.qkv = make(width, 3 * width, std=width**-0.5)
        self.out = make(width, width, std=out_std)

    def __call__(
        self,
        x: Float[Array, "b t w"],
        *,
        mask: str,
        lengths: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b t w"]:
        """Attend among the rows of x; masks as in `attend`."""
        kernel, bias = self.qkv.kernel[...], self.qkv.bias[...]
        mixed = attend(
            *self._projected(x, kernel, bias, 3),
            mask=mask,
            lengths=lengths,
            compute=self.compute,
        )
        return self.out(mixed)

    def cross(
        self, x: Float[Array, "b t w"], context: Float[Array, "b s w"]
    ) -> Float[Array, "b t w"]:
        """Let each row of x attend to all rows of `context`."""
        width = x.shape[-1]
        kernel, bias = self.qkv.kernel[...], self.qkv.bias[...]
        query = self._projected(x, kernel[:, :width], bias[:width], 1)
        pair = self._projected(context, kernel[:, width:], bias[width:], 2)
        return self.out(attend(*query, *pair, mask="none", compute=self.compute))

    def _projected(
        self,
        x: Float[Array, "b t w"],
        kernel: Float[Array, "w o"],
        bias: Float[Array, " o"],
        count: int,
    ) -> list[Float[Array, "b t w"]]:
        """Apply a part of `qkv`; queries, keys and values leave as arrays of their own.

        One product, whose pieces are written once, with the bias: the kernels of
        attention read contiguous rows.
        """
        product = project(x, kernel, self.compute, False)
        pieces = zip(
            jnp.split(product, count, axis=-1), jnp.split(bias, count), strict=True
        )
        return [
            checkpoint_name((piece + own).astype(x.dtype), PRODUCT)
            for piece, own in pieces
        ]


class Mlp(nnx.Module):
    """Two linear layers with an activation between them, four times as wide inside."""

    def __init__(
        self,
        width: int,
        *,
        out_std: float,
        stack: tuple[int, ...],
        compute: Compute,
        activation: str,
    ):
        make = functools.partial(Linear, stack=stack, compute=compute)
        self.activation = activation
        self.up = make(width, 4 * width, std=(2 * width) ** -0.5)
        self.down = make(4 * width, width, std=out_std)

    def __call__(self, x: Float[Array, "b t w"]) -> Float[Array, "b t w"]:
        """Apply to each position independently."""
        return self.down(_ACTIVATIONS[self.activation](self.up(x)))


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

    def __init__(
        self,
        width: int,
        layers: int,
        *,
        compute: Compute = PORTABLE,
        activation: str = "quick_gelu",
    ):
        self.compute, self.layers = compute, layers
        out_std = width**-0.5 * (2 * layers) ** -0.5
        layer = {"stack": (layers,)}
        self.ln_1 = LayerNorm(width, **layer)
        self.attention = Attention(width, out_std=out_std, **layer, compute=compute)
        self.ln_2 = LayerNorm(width, **layer)
        layer |= {"out_std": out_std, "compute": compute}
        self.mlp = Mlp(width, **layer, activation=activation)

    def __call__(
        self,
        x: Float[Array, "b t w"],
        *,
        mask: str,
        lengths: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b t w"]:
        """Run all blocks.

        Args:
            x: The residual stream, which keeps its dtype of float32 or more.
            mask: See `attend`.
            lengths: See `attend`.
        """
        return self._run((x,), mask, lengths)[0]

    def attended(
        self, x: Float[Array, "b t w"], position: Int[Array, " b"], *, mask: str
    ) -> tuple[Float[Array, "b t w"], Float[Array, "b t"]]:
        """Run all blocks, and tell what one position attends to in the last of them.

        Args:
            x: See `__call__`.
            position: The position of each row.
            mask: See `attend`.

        Returns:
            The stream, and the shares of attention that the position gives to all
            others, a mean over the heads: constants of at least float32.
        """
        x, before_last = self._run((x, x), mask, None)
        return x, self._shares(before_last, position, mask)

    def _run(
        self, streams: tuple[Array, ...], mask: str, lengths: Array | None
    ) -> tuple[Array, ...]:
        """Run all blocks on the first stream; a second becomes the last one's input."""
        remat, unroll = self.compute.remat, min(self.compute.scan_unroll, self.layers)
        rows = streams[0].shape[1]
        if self.compute.attention == "cudnn":
            # Here once, rather than in every layer.
            x, lengths = to_even_length(streams[0], lengths)
            streams = (x,) * len(streams)

        def body(streams: tuple, block: "Blocks") -> tuple[tuple, None]:
            """Run one block; carry its input as well, without a gradient."""
            x, *before = streams
            y = gathered(block).one(rows_in_place(x), mask=mask, lengths=lengths)
            return (y, *(lax.stop_gradient(x) for _ in before)), None

        if remat != "none":
            policy = _keeps_products if remat == "elementwise" else None
            # scan already separates iterations, so CSE barriers would only cost.
            body = jax.checkpoint(body, prevent_cse=unroll > 1, policy=policy)
        streams, _ = lax.scan(body, streams, self, unroll=unroll)
        return tuple(x[:, :rows] for x in streams)

    def _shares(self, x: Array, position: Array, mask: str) -> Float[Array, "b t"]:
        """See `attended`; x is the input of the last block.

        A head's query q meets the keys as x (W_k q): they are never computed, and
        their bias adds the same to all scores of a row, which softmax does not see.
        """
        last = jax.tree.map(lambda param: param[-1], (self.ln_1, self.attention.qkv))
        ln_1, qkv = gathered(lax.stop_gradient(last))
        x = ln_1(lax.stop_gradient(x))
        t, w = x.shape[1:]
        kernel = qkv.kernel[...][:, : 2 * w].reshape(w, 2, -1, HEAD_WIDTH)
        bias = qkv.bias[...][:w].reshape(-1, HEAD_WIDTH)
        multiply = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
        row = jnp.take_along_axis(x, position[:, None, None], axis=1)[:, 0]
        query = multiply("bw,whc->bhc", row, kernel[:, 0]) + bias
        query = multiply("bhc,whc->bhw", query * HEAD_WIDTH**-0.5, kernel[:, 1])
        scores = multiply("bhw,btw->bht", query, x)
        if mask == "causal":
            seen = jnp.arange(t) <= position[:, None, None]
            scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
        return jax.nn.softmax(scores, axis=-1).mean(axis=1)

    def one(
        self,
        x: Float[Array, "b t w"],
        *,
        mask: str,
        lengths: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b t w"]:
        """Apply one block, whose parameters have no leading axis of layers."""
        dtype = compute_dtype(self.compute.dtype, self.ln_1.scale[...])
        x = x + self.attention(self.ln_1(x).astype(dtype), mask=mask, lengths=lengths)
        return x + self.mlp(self.ln_2(x).astype(dtype))
