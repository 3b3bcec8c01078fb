# SPDX-License-Identifier: Apache-2.0
"""Two views of which image patches each word of a caption relates to.

EFA's sparse similarity (arXiv 2509.13754) works for any model; the attention of the
interaction encoder (IRR, CVPR 2023) for models trained with one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from data_pipeline.tokenizer import Word
from fmfa_jax.losses.alignment import RULES, grouped_patches
from fmfa_jax.losses.arithmetic import unit
from fmfa_jax.models.config import HEAD_WIDTH
from fmfa_jax.models.heads import InteractionEncoder
from fmfa_jax.models.layers import project

Rows = Array | np.ndarray

_FUNCTION_WORDS = frozenset(
    """a about above across all along also am an and any are around as at be been
    behind being below beside between both but by can could did do does down each for
    from had has have having he her here him his i in into is it its me my near no not
    of off on onto or our out over past she so some than that the their them then there
    these they this those through to toward towards under up us very was we were which
    while who whom whose will with without would you your""".split()
)


@dataclass(frozen=True)
class WordMaps:
    """A view of a caption and an image.

    Attributes:
        title: Name of the view, and what strength means in it.
        words: The words in order.
        strength: Strength of each word, comparable within one caption.
        patches: Weight of each patch for each word, row-major.
    """

    title: str
    words: tuple[str, ...]
    strength: Float32[np.ndarray, "w"]
    patches: Float32[np.ndarray, "w p"]


def word_maps(
    text_tokens: Float[Rows, "l d"],
    image_tokens: Float[Rows, "n d"],
    words: Sequence[Word],
    *,
    rule: str = "official",
    interaction: InteractionEncoder | None = None,
) -> tuple[WordMaps, ...]:
    """Return all views of a caption and an image that the model supports.

    Args:
        text_tokens: Output of the text tower for the caption.
        image_tokens: Output of the image tower, the class token first.
        words: Words of the caption from `WordTokenizer.words`; pieces are averaged.
        rule: EFA's threshold rule, see `word_patch_maps`.
        interaction: Interaction encoder of the model; None returns similarity alone.
    """
    text, image = jnp.asarray(text_tokens), jnp.asarray(image_tokens)
    title = "similarity (strength: cosine of a word and its patches)"
    views = [_view(title, words, *_similarity(text, image, rule=rule))]
    if interaction is not None:
        title = "attention (strength: 0 looks everywhere, 1 at one patch)"
        strength, attention = _attention(interaction, text, image)
        views.append(_view(title, words, strength, attention[:, 1:]))
    return tuple(views)


# Compiled as a whole, because compiling operation by operation takes seconds.
@partial(jax.jit, static_argnames="rule")
def _similarity(
    text: Float[Array, "l d"], image: Float[Array, "n d"], *, rule: str
) -> tuple[Float[Array, "l"], Float[Array, "l p"]]:
    shares = word_patch_maps(text, image, rule=rule)
    return (unit(text) * unit(shares @ image[1:])).sum(-1), shares


@jax.jit
def _attention(
    interaction: InteractionEncoder,
    text: Float[Array, "l d"],
    image: Float[Array, "n d"],
) -> tuple[Float[Array, "l"], Float[Array, "l n"]]:
    attention = cross_attention(interaction, text, image)
    return _focus(attention), attention


def word_patch_maps(
    text_tokens: Float[Array, "l d"],
    image_tokens: Float[Array, "n d"],
    *,
    rule: str = "official",
) -> Float[Array, "l p"]:
    """Return the weight of each patch in the group that EFA forms for each position.

    Weights are dot products scaled to 0..1 over the patches, with small ones dropped
    and the rest normalized to sum to 1 (or 0 if all patches are equally similar).

    Args:
        text_tokens: All positions of one caption.
        image_tokens: All tokens of one image; the class token, which is first, is
            ignored.
        rule: Threshold rule as in `losses.efa`: "official" drops values up to
            1 / number of patches, "plus" the lower half of a word's range.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, got {rule!r}")
    patches = image_tokens[1:]
    threshold = 1 / len(patches) if rule == "official" else 0.5
    similar = jnp.dot(text_tokens, patches.T, precision=jax.lax.Precision.HIGHEST)
    # Grouping one-hot vectors instead of patches returns the weights themselves.
    places = jnp.eye(len(patches), dtype=similar.dtype)
    return grouped_patches(similar[None], places[None], threshold=threshold)[0]


def cross_attention(
    interaction: InteractionEncoder,
    text_tokens: Float[Array, "l d"],
    image_tokens: Float[Array, "n d"],
) -> Float[Array, "l n"]:
    """Return how each position attends to each image token, averaged over heads.

    This repeats the arithmetic of `InteractionEncoder`, which does not keep its
    attention. Each row sums to 1. The caption is not masked.
    """
    width = text_tokens.shape[-1]
    qkv = interaction.cross_attention.qkv
    kernel, bias = qkv.kernel[...], qkv.bias[...]
    query = project(interaction.ln_text(text_tokens), kernel[:, :width])
    key = project(interaction.ln_image(image_tokens), kernel[:, width : 2 * width])
    query, key = query + bias[:width], key + bias[width : 2 * width]
    heads = [x.reshape(len(x), -1, HEAD_WIDTH) for x in (query, key)]
    scores = jnp.einsum("lhc,nhc->hln", *heads) / HEAD_WIDTH**0.5
    return jax.nn.softmax(scores, axis=-1).mean(axis=0)


def strongest(view: WordMaps, count: int) -> list[int]:
    """Return the indices of the `count` strongest words, in order.

    Punctuation is skipped, and so are words like "the", whose attention means little,
    unless there are no others.
    """
    words = [i for i, text in enumerate(view.words) if is_word(text)]
    words = [i for i in words if is_content_word(view.words[i])] or words
    words.sort(key=lambda i: -view.strength[i])
    return sorted(words[:count])


def is_word(text: str) -> bool:
    """Return whether a text is a word, not punctuation."""
    return any(character.isalnum() for character in text)


def is_content_word(text: str) -> bool:
    """Return whether a text is a word that describes something visible."""
    return is_word(text) and text not in _FUNCTION_WORDS


def _view(
    title: str,
    words: Sequence[Word],
    strength: Float[Array, "l"],
    patches: Float[Array, "l p"],
) -> WordMaps:
    """Average the rows of each word's pieces."""
    rows = np.asarray(patches, np.float32)
    values = np.asarray(strength, np.float32)
    spans = [slice(word.start, word.stop) for word in words]
    return WordMaps(
        title,
        tuple(word.text for word in words),
        np.array([values[span].mean() for span in spans], np.float32),
        np.array([rows[span].mean(axis=0) for span in spans], np.float32).reshape(
            len(words), rows.shape[1]
        ),
    )


def _focus(attention: Float[Array, "l n"]) -> Float[Array, "l"]:
    """Return one minus the entropy of each row relative to a uniform one."""
    entropy = -jax.scipy.special.xlogy(attention, attention).sum(-1)
    return 1 - entropy / jnp.log(attention.shape[1])
