# SPDX-License-Identifier: Apache-2.0
"""Token selection embedding (TSE): a feature pooled from the tokens that matter.

What the class token and the end token attend to in the last block of their towers is
selected, embedded by a residual MLP, and pooled by its maximum.

Source: Qin et al., CVPR 2024, "Noisy-Correspondence Learning for Text-to-Image Person
Re-identification" (RDE), and its official code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from fmfa_jax.models.attention import at_least_float32
from fmfa_jax.models.config import Compute, ModelConfig
from fmfa_jax.models.layers import Linear, compute_dtype, drawn

NORM_EPSILON = 1e-5
MOMENTUM = 0.1
_SHORTEST = 1e-12  # a token no longer than this has no direction


class Selected(NamedTuple):
    """The tokens of each row with the most attention, those with more first.

    Attributes:
        tokens: Their values, rows of length 1.
        count: How many of them count, at least 1; the rest is padding.
    """

    tokens: Float[Array, "b k d"]
    count: Int[Array, " b"]


class Moments(NamedTuple):
    """Statistics that rows are normalised with, the biased variance among them."""

    mean: Float[Array, " w"]
    variance: Float[Array, " w"]


class Embedded(NamedTuple):
    """What a head makes of selected tokens.

    Attributes:
        features: Not normalized.
        kept: The statistics that the head should keep after this batch.
    """

    features: Float[Array, "b e"]
    kept: Moments


def selected_count(positions: int, ratio: float) -> int:
    """Number of selected positions: the product rounded down, as Python has it.

    That is 28 for .29 of 100, like in the official code, but never 0.
    """
    return max(1, int(positions * ratio))


def unit_rows(x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """Rows of length 1, zeros for one without a direction; finite gradients."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    lives = square > _SHORTEST**2
    # Of typed arrays: the export to ONNX makes float64 of Python's numbers.
    inverse = lax.rsqrt(jnp.where(lives, square, jnp.ones_like(square)))
    return jnp.where(lives, x * inverse, jnp.zeros_like(x))


def patch_scores(attention: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """What patches are ranked by: attention, with the class token last."""
    return attention.at[:, 0].set(-1)


def word_scores(
    attention: Float[Array, "b l"], ids: Int[Array, "b l"]
) -> Float[Array, "b l"]:
    """What words are ranked by: attention, then all padding, start and end token last.

    A "!" has the id of padding, and is taken for it as in the official code.
    """
    place, end = jnp.arange(ids.shape[1]), jnp.argmax(ids, axis=1)
    border = (place == 0) | (place == end[:, None])
    last = jnp.where(border, -jnp.ones_like(attention), attention)
    return jnp.where(ids == 0, jnp.zeros_like(attention), last)


def select_patches(
    tokens: Float[Array, "b n d"], attention: Float[Array, "b n"], *, ratio: float
) -> Selected:
    """Select a share of an image's patches.

    Args:
        tokens: Output of the image tower, the class token first.
        attention: What the class token attends to.
        ratio: The share, see `selected_count`.
    """
    k = selected_count(tokens.shape[1] - 1, ratio)
    count = jnp.full_like(attention[:, 0], k, dtype=jnp.int32)
    return _select(tokens, patch_scores(attention), k, count)


def select_words(
    tokens: Float[Array, "b l d"],
    attention: Float[Array, "b l"],
    ids: Int[Array, "b l"],
    *,
    ratio: float,
    context_length: int,
) -> Selected:
    """Select a share of the CONTEXT's positions among a caption's words.

    Shorter captions are filled up with padding, which does not count; of a caption
    without words one position of padding does, where the official code has NaN.

    Args:
        tokens: Output of the text tower.
        attention: What the end token attends to.
        ids: Token ids; l may be less than the context.
        ratio: The share, see `selected_count`.
        context_length: Positions of a whole caption.
    """
    k = min(selected_count(context_length - 2, ratio), ids.shape[1])
    words = jnp.sum(ids != 0, axis=1, dtype=jnp.int32) - 2
    return _select(tokens, word_scores(attention, ids), k, jnp.clip(words, 1, k))


def _select(tokens: Array, scores: Array, k: int, count: Array) -> Selected:
    """Take the k highest scores; of equal ones those that stand first."""
    # A stable sort: the first wins a tie. `lax.top_k` would gather the global batch.
    position = jnp.argsort(-scores, axis=1, stable=True)[:, :k]
    chosen = jnp.take_along_axis(tokens, position[..., None], axis=1)
    return Selected(unit_rows(chosen), count)


class BatchNorm(nnx.Module):
    """Batch norm over all rows of all samples, with the statistics that it has kept."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32))
        self.mean = nnx.Param(jnp.zeros(width, jnp.float32))
        self.variance = nnx.Param(jnp.ones(width, jnp.float32))

    @property
    def kept(self) -> Moments:
        """Statistics of earlier batches, which no gradient changes."""
        return lax.stop_gradient(Moments(self.mean[...], self.variance[...]))

    def __call__(
        self, x: Float[Array, "b k w"], moments: Moments
    ) -> Float[Array, "b k w"]:
        """Normalise with the given statistics."""
        scale = lax.rsqrt(moments.variance + NORM_EPSILON) * self.scale[...]
        return (x - moments.mean) * scale + self.bias[...]

    def after(self, moments: Moments, rows: int) -> Moments:
        """What is kept after a batch: a tenth of the new, its variance unbiased."""
        new = Moments(moments.mean, moments.variance * (rows / max(1, rows - 1)))
        return lax.stop_gradient(
            jax.tree.map(lambda x, y: x + MOMENTUM * (y - x), self.kept, new)
        )


def moments_of(x: Float[Array, "b k w"]) -> Moments:
    """Mean and biased variance over all rows of all samples."""
    mean = x.mean(axis=(0, 1))
    return Moments(mean, jnp.square(x - mean).mean(axis=(0, 1)))


class SelectionHead(nnx.Module):
    """Embeds the selected tokens of one modality: max_j (MLP(x_j) + W x_j)."""

    def __init__(self, config: ModelConfig):
        width, wide = config.embed_dim, config.tse_width
        self.config = config
        self.up = _linear(width, wide // 2, config)
        self.norm = BatchNorm(wide // 2)
        self.down = _linear(wide // 2, wide, config)
        self.skip = _linear(width, wide, config)

    def __call__(self, selected: Selected, *, statistics: str = "kept") -> Embedded:
        """Embed and pool.

        Args:
            selected: Tokens of the GLOBAL batch where its statistics are wanted.
            statistics: "kept" (at test) or "batch", of all rows, padding included.
        """
        dtype = compute_dtype(self.config.dtype, self.up.kernel[...])
        x = selected.tokens.astype(dtype)
        hidden = self.up.wide(x)
        moments, kept = self.norm.kept, self.norm.kept
        if statistics == "batch":
            moments = moments_of(hidden)
            kept = self.norm.after(moments, hidden.shape[0] * hidden.shape[1])
        hidden = jnp.maximum(self.norm(hidden, moments), 0).astype(dtype)
        rows = self.down.wide(hidden) + self.skip.wide(x)
        counts = jnp.arange(rows.shape[1]) < selected.count[:, None]
        lowest = jnp.finfo(rows.dtype).min
        pooled = jnp.where(counts[..., None], rows, lowest).max(axis=1)
        return Embedded(pooled.astype(at_least_float32(dtype)), kept)


def _linear(inputs: int, outputs: int, compute: Compute) -> Linear:
    """A layer with the spread of PyTorch's own, the bias included."""
    std = (3 * inputs) ** -0.5
    layer = Linear(inputs, outputs, std=std, compute=compute)
    layer.bias = drawn((outputs,), std)
    return layer


class TokenSelection(nnx.Module):
    """The heads of both modalities, which share nothing."""

    def __init__(self, config: ModelConfig):
        self.image = SelectionHead(config)
        self.text = SelectionHead(config)
