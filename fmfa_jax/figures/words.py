# SPDX-License-Identifier: Apache-2.0
"""Which patches of a picture each word of a caption goes with, in two ways.

By EFA's sparse similarity (arXiv 2509.13754), which any model has; and by the
interaction encoder's attention (IRR, CVPR 2023), where the model was trained with one.
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
    """One way to look at a caption and a picture.

    Attributes:
        title: which way, and what strength means.
        words: in the sentence's order.
        strength: of each word; comparable within one caption.
        patches: what each word gives to each patch, left to right, downwards.
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
    """Return all ways to look at a caption and a picture that the model allows.

    Args:
        text_tokens: the text tower's output for the caption.
        image_tokens: the image tower's output, the class token first.
        words: of the caption, from `WordTokenizer.words`; pieces are averaged.
        rule: of EFA, see `word_patch_maps`.
        interaction: the model's interaction encoder; None: only the similarity.
    """
    text, image = jnp.asarray(text_tokens), jnp.asarray(image_tokens)
    title = "similarity (strength: cosine of a word and its patches)"
    views = [_view(title, words, *_similarity(text, image, rule=rule))]
    if interaction is not None:
        title = "attention (strength: 0 looks everywhere, 1 at one patch)"
        strength, attention = _attention(interaction, text, image)
        views.append(_view(title, words, strength, attention[:, 1:]))
    return tuple(views)


# Each compiled as a whole: operation by operation, the compiler takes seconds.
@partial(jax.jit, static_argnames="rule")
def _similarity(
    text: Float[Array, "l d"], image: Float[Array, "n d"], *, rule: str
) -> tuple[Float[Array, "l"], Float[Array, "l p"]]:
    shares = word_patch_maps(text, image, rule=rule)
    return _cosines(text, shares @ image[1:]), shares


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
    """Return the share of each patch in the group that EFA forms for each position.

    Dot products, scaled to 0..1 over the patches, small ones dropped, the rest summing
    to 1 (to 0 where a word finds all patches equal).

    Args:
        text_tokens: all positions of one caption.
        image_tokens: of one picture, the class token first, which takes no part.
        rule: of the threshold, as `losses.efa` has it: "official" drops what is at
            most 1 / number of patches, "plus" the lower half of a word's range.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, got {rule!r}.")
    patches = image_tokens[1:]
    threshold = 1 / len(patches) if rule == "official" else 0.5
    similar = jnp.dot(text_tokens, patches.T, precision=jax.lax.Precision.HIGHEST)
    # Grouping unit vectors in place of patches gives back the shares themselves.
    places = jnp.eye(len(patches), dtype=similar.dtype)
    return grouped_patches(similar[None], places[None], threshold=threshold)[0]


def cross_attention(
    interaction: InteractionEncoder,
    text_tokens: Float[Array, "l d"],
    image_tokens: Float[Array, "n d"],
) -> Float[Array, "l n"]:
    """Return how each position attends to each image token, averaged over the heads.

    The same arithmetic as `InteractionEncoder` uses, which keeps only the result; each
    row sums to 1. The caption stands unmasked here.
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
    """Return the `count` strongest words, in the sentence's order.

    Marks are left out, and so are words like "the", which look wherever it suits them,
    unless there are no others.
    """
    words = [i for i, text in enumerate(view.words) if is_word(text)]
    words = [i for i in words if is_content_word(view.words[i])] or words
    words.sort(key=lambda i: -view.strength[i])
    return sorted(words[:count])


def is_word(text: str) -> bool:
    """Tell words from marks, which have no strength worth showing."""
    return any(character.isalnum() for character in text)


def is_content_word(text: str) -> bool:
    """Tell words that name something to be seen from "the", "of" and marks."""
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


def _cosines(a: Float[Array, "l d"], b: Float[Array, "l d"]) -> Float[Array, "l"]:
    """The cosine of each row with its partner; 0 where one of them is zero."""
    lengths = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / jnp.where(lengths > 0, lengths, 1)


def _focus(attention: Float[Array, "l n"]) -> Float[Array, "l"]:
    """One minus the entropy of each row over that of an even one."""
    entropy = -jax.scipy.special.xlogy(attention, attention).sum(-1)
    return 1 - entropy / jnp.log(attention.shape[1])
