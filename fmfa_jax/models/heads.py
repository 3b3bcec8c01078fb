# SPDX-License-Identifier: Apache-2.0
"""Heads that the towers have only in training: identities and masked tokens.

Source: Jiang and Ye, CVPR 2023, "Cross-Modal Implicit Relation Reasoning and
Aligning for Text-to-Image Person Retrieval" (IRR, the interaction encoder).
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from fmfa_jax.models.config import ModelConfig
from fmfa_jax.models.layers import (
    Attention,
    Blocks,
    LayerNorm,
    Linear,
    at_least_float32,
    compute_dtype,
    quick_gelu,
)

CLASSIFIER_STD = 0.001


class MaskedLogits(NamedTuple):
    """Predictions for the labelled positions of a batch of masked captions.

    Attributes:
        logits: float32 scores over the vocabulary.
        labels: Original token of each row. Rows with label 0 are undefined.
        dropped: Number of labelled positions per caption beyond the capacity.
    """

    logits: Float[Array, "b c v"]
    labels: Int[Array, "b c"]
    dropped: Int[Array, " b"]


class MaskedWords(NamedTuple):
    """What is scored against the vocabulary at the labelled positions of a batch.

    Attributes:
        hidden: Input of the vocabulary's layer, in the dtype that it computes in.
        labels: See `MaskedLogits`.
        dropped: See `MaskedLogits`.
    """

    hidden: Float[Array, "b c d"]
    labels: Int[Array, "b c"]
    dropped: Int[Array, " b"]


class LabelledRows(NamedTuple):
    """The labelled positions of each caption, moved to the front.

    Attributes:
        position: Where each row came from.
        labels: Label of each row, 0 once a caption has no more labels.
        dropped: Number of labels per caption beyond the capacity.
    """

    position: Int[Array, "b c"]
    labels: Int[Array, "b c"]
    dropped: Int[Array, " b"]


def labelled_rows(labels: Int[Array, "b l"], *, capacity: int) -> LabelledRows:
    """Select the first `capacity` positions of each caption with a nonzero label."""
    length = labels.shape[1]
    if not 1 <= capacity <= length:
        raise ValueError(
            f"capacity must be in 1..{length} (positions of a caption), got {capacity}."
        )
    order = jnp.argsort(labels == 0, axis=1, stable=True)[:, :capacity]
    chosen = jnp.take_along_axis(labels, order, axis=1)
    dropped = (labels != 0).sum(axis=1) - (chosen != 0).sum(axis=1)
    return LabelledRows(order, chosen, dropped.astype(jnp.int32))


class TokenHead(nnx.Module):
    """Linear, QuickGELU, LayerNorm; then `fc` scores the vocabulary."""

    def __init__(self, config: ModelConfig):
        width = config.embed_dim
        fc_std = width**-0.5 * (2 * config.irr_layers) ** -0.5
        self.dense = Linear(width, width, std=(2 * width) ** -0.5, compute=config)
        self.ln = LayerNorm(width)
        self.fc = Linear(width, config.vocab_size, std=fc_std, compute=config)

    def __call__(self, x: Float[Array, "b c d"]) -> Float[Array, "b c d"]:
        """Return what `fc` scores."""
        return self.ln(quick_gelu(self.dense(x)))


class InteractionEncoder(nnx.Module):
    """Masked words attend to the image to predict what they were (IRR)."""

    def __init__(self, config: ModelConfig):
        width = config.embed_dim
        out_std = width**-0.5 * (2 * config.irr_layers) ** -0.5
        self.config = config
        self.ln_text = LayerNorm(width)
        self.ln_image = LayerNorm(width)
        self.cross_attention = Attention(width, out_std=out_std, compute=config)
        self.blocks = Blocks(width, config.irr_layers, compute=config)
        self.ln_post = LayerNorm(width)
        self.head = TokenHead(config)

    def __call__(
        self,
        text_tokens: Float[Array, "b l d"],
        image_tokens: Float[Array, "b n d"],
        position: Int[Array, "b c"],
        *,
        lengths: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b c d"]:
        """Return the head's rows at some positions; see `FMFA.masked_words`."""
        dtype = compute_dtype(self.config.dtype, self.ln_text.scale[...])
        text = self.ln_text(text_tokens.astype(dtype))
        image = self.ln_image(image_tokens.astype(dtype))
        x = self.cross_attention.cross(text, image).astype(at_least_float32(dtype))
        x = self.blocks(x, mask="none", lengths=lengths)
        # The rest is per position, so drop all others: without a label, 85% of the
        # vocabulary projection would be wasted on them.
        x = jnp.take_along_axis(x, position[..., None], axis=1)
        return self.head(self.ln_post(x).astype(dtype))


def identity_head(config: ModelConfig) -> Linear:
    """Return the identity classifier of both modalities: N(0, 0.001^2), bias 0."""
    return Linear(config.embed_dim, config.classes, std=CLASSIFIER_STD, compute=config)
