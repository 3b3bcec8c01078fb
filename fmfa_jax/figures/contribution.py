# SPDX-License-Identifier: Apache-2.0
"""What each word of a caption adds to the cosine with an image, and from which patches.

A word's contribution is the cosine of the whole caption minus that of the caption
without the word. Integrated gradients (Sundararajan et al., ICML 2017) divide it among
the pixels. `benchmarks/word_maps.py` measures how much of it lies on what a word names.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, UInt8

from data_pipeline.tokenizer import Word
from fmfa_jax.figures.words import WordMaps
from fmfa_jax.losses.arithmetic import unit
from fmfa_jax.models import bind, global_image, global_text, normalize_images
from fmfa_jax.models.config import ModelConfig
from fmfa_jax.models.towers import patches_of

STEPS = 2
"""Points of the integral by default; more of them change the maps little."""

_TITLE = "contribution (strength: by how much the cosine falls without the word)"
_ROWS = 16  # captions are padded to a multiple of it, so that few programs are compiled


def contribution_maps(
    config: ModelConfig,
    params: dict[str, Any],
    pixels: UInt8[np.ndarray, "H W 3"],
    ids: Int32[np.ndarray, "l"],
    words: Sequence[Word],
) -> WordMaps:
    """Return the view of what each word adds to the cosine, for any model.

    The map of a word keeps the patches that raise its contribution, scaled to sum to
    1 (or 0 if there are none).

    Args:
        config: Config of the model.
        params: Parameters of both towers, at least.
        pixels: The image, of the model's size.
        ids: The caption.
        words: Words of the caption from `WordTokenizer.words`.
    """
    rows = np.stack([ids, *(without(ids, word) for word in words)])
    padded = np.resize(rows[-1:], (-len(rows) % _ROWS, len(ids)))
    strength, patches = contributions(
        config.portable, params, jnp.asarray(pixels), jnp.concatenate([rows, padded])
    )
    kept = np.maximum(np.asarray(patches, np.float32)[: len(words)], 0)
    total = kept.sum(axis=1, keepdims=True)
    shares = kept / np.where(total > 0, total, 1)
    texts = tuple(word.text for word in words)
    falls = np.asarray(strength, np.float32)[: len(words)]
    return WordMaps(_TITLE, texts, falls, shares)


def without(ids: Int32[np.ndarray, "l"], word: Word) -> Int32[np.ndarray, "l"]:
    """Return a caption without one of its words, padded with zeros."""
    left = np.delete(ids, slice(word.start, word.stop))
    return np.pad(left, (0, len(ids) - len(left)))


@partial(jax.jit, static_argnums=0, static_argnames="steps")
def contributions(
    config: ModelConfig,
    params: dict[str, Any],
    pixels: UInt8[Array, "H W 3"],
    ids: Int[Array, "r l"],
    *,
    steps: int = STEPS,
) -> tuple[Float[Array, "w"], Float[Array, "w p"]]:
    """Return what separates captions from the first one, in all and by patch.

    The path of the integral leads from an image that has the mean colour of `pixels`
    everywhere, in whole values, to `pixels`. If patches do not overlap, those of a word
    sum to the difference that it makes between both images (up to the error of the
    sum).

    Args:
        config: Config of the model.
        params: Parameters of both towers, at least.
        pixels: The image, of the model's size.
        ids: The whole caption, then w captions that each lack a word.
        steps: Points of the integral, by the midpoint rule.

    Returns:
        For each of the w captions, by how much its cosine is less; and each patch's
        part of that.
    """
    model = bind(config, params)
    text = unit(global_text(model.encode_texts(ids), ids))
    directions = text[0] - text[1:]

    def contribution(image: Float[Array, "H W 3"]) -> Float[Array, "v"]:
        feature = unit(global_image(model.encode_images(image[None])))[0]
        return jnp.dot(directions, feature, precision=jax.lax.Precision.HIGHEST)

    # Rounded, so that nothing changes on the way to an image of one colour.
    mean = jnp.round(pixels.astype(jnp.float32).mean(axis=(0, 1))).astype(pixels.dtype)
    flat = jnp.broadcast_to(mean, pixels.shape)
    image, start = normalize_images(jnp.stack([pixels, flat]))
    change = image - start

    def gradients(part: Float[Array, ""]) -> Float[Array, "v H W 3"]:
        """One word at a time.

        Under vmap over 128 or more cotangents of one x, jaxlib 0.10.2 gets a layer
        norm's gradient wrong on CPUs.
        """
        _, pull = jax.vjp(contribution, image - part * change)
        return jax.lax.map(lambda row: pull(row)[0], jnp.eye(len(directions)))

    # The points lead back from the image, half a step in.
    back = (jnp.arange(steps) + 0.5) / steps
    parts = jax.lax.map(gradients, back).mean(axis=0) * change
    patches = patches_of(parts, patch=config.patch, stride=config.stride).sum(axis=-1)
    return contribution(image), patches
