# SPDX-License-Identifier: Apache-2.0
"""Random views of a batch, made on the device inside the step.

Every row draws from its own key, fold_in(step key, global row number), so views do not
depend on how many devices or hosts share the batch.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from data_pipeline.hints import unknown
from fmfa_jax.models import IMAGE_MEAN, normalize_images
from fmfa_jax.options import Between, Options

ERASE_AREA = (0.02, 0.4)
ERASE_RATIO = (0.3, 3.3)
ERASE_TRIES = 10

# The share of chosen tokens that become the mask, and that become a random word.
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1
MASK_RULES = ("bert", "mask", "mask_free")


@dataclass(frozen=True, kw_only=True)
class Augmentation(Options, section="augment"):
    """Random views of pictures.

    Attributes:
        flip: Probability of a horizontal flip.
        pad: Zero padding before the random crop, pixels.
        erase: Probability that a box is erased.
    """

    flip: Annotated[float, Between(0, 1)] = 0.5
    pad: Annotated[int, Between(0, 1024)] = 10
    erase: Annotated[float, Between(0, 1)] = 0.5


def row_numbers(
    key: Key[Array, ""], rows: Int[Array, " b"], count: int
) -> Float[Array, "b count"]:
    """Uniform numbers in [0, 1), each global row from its own key.

    One draw for everything that a row needs: each further call of the generator adds
    seconds of compilation.
    """

    def one(row: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, row), (count,))

    return jax.vmap(one)(rows)


def below(number: Float[Array, "..."], limit: int | Array) -> Int[Array, "..."]:
    """Uniform in [0, 1) -> uniform integer in 0..limit-1."""
    return jnp.minimum((number * limit).astype(jnp.int32), limit - 1)


def random_crop(
    numbers: Float[Array, "2"], image: UInt8[Array, "h w 3"], pad: int
) -> UInt8[Array, "h w 3"]:
    """Pad with black on all sides, then crop the original size at a random place."""
    h, w, _ = image.shape
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = below(numbers, 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), (h, w, 3))


def erase_box(
    numbers: Float[Array, " r"], height: int, width: int
) -> tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """Top, left, height, width of the box to erase (0 x 0 if no try fits).

    The area is uniform in ERASE_AREA of the picture, the aspect log-uniform in
    ERASE_RATIO, and the first of ERASE_TRIES that fits is taken (Zhong et al., "Random
    Erasing Data Augmentation", as in torchvision). Needs 2 ERASE_TRIES + 2 numbers.
    """
    least, most = ERASE_AREA
    area = height * width * (least + numbers[:ERASE_TRIES] * (most - least))
    flat, steep = jnp.log(jnp.asarray(ERASE_RATIO))
    ratio = jnp.exp(flat + numbers[ERASE_TRIES:-2] * (steep - flat))
    hs = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
    ws = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
    fits = (hs < height) & (ws < width)
    first = jnp.argmax(fits)
    h = jnp.where(fits.any(), hs[first], 0)
    w = jnp.where(fits.any(), ws[first], 0)
    top, left = below(numbers[-2], height - h + 1), below(numbers[-1], width - w + 1)
    return top, left, h, w


def erase(
    numbers: Float[Array, " r"], pixels: Float[Array, "h w 3"], probability: float
) -> Float[Array, "h w 3"]:
    """Fill a random box of a NORMALISED image with CLIP's mean colour vector.

    The mean itself is not normalised, so the fill is grey-green and not the neutral
    zero: a quirk of the official code, and part of its numbers. Needs one number more
    than `erase_box`.
    """
    height, width, _ = pixels.shape
    top, left, h, w = erase_box(numbers[1:], height, width)
    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    inside = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
    inside &= numbers[0] < probability
    return jnp.where(inside[..., None], jnp.asarray(IMAGE_MEAN, pixels.dtype), pixels)


def augment_images(
    key: Key[Array, ""],
    images: UInt8[Array, "b h w 3"],
    augmentation: Augmentation,
    *,
    rows: Int[Array, " b"] | None = None,
) -> Float[Array, "b h w 3"]:
    """Flip, pad and crop, normalise, erase; each image with its own numbers.

    Args:
        key: The step's key.
        images: Pictures as bytes.
        augmentation: Probabilities and sizes.
        rows: Global row numbers; None: 0, 1, ..
    """
    rows = jnp.arange(images.shape[0]) if rows is None else rows

    def move(numbers: Array, image: Array) -> Array:
        image = jnp.where(numbers[0] < augmentation.flip, image[:, ::-1], image)
        return random_crop(numbers[1:3], image, augmentation.pad)

    def cover(numbers: Array, pixels: Array) -> Array:
        return erase(numbers[3:], pixels, augmentation.erase)

    numbers = row_numbers(key, rows, 3 + 1 + 2 * ERASE_TRIES + 2)
    pixels = normalize_images(jax.vmap(move)(numbers, images))
    return jax.vmap(cover)(numbers, pixels)


def mask_tokens(
    key: Key[Array, ""],
    tokens: Int[Array, "b l"],
    *,
    rate: float,
    mask_id: int,
    rule: str = "bert",
    rows: Int[Array, " b"] | None = None,
    context_length: int | None = None,
) -> tuple[Int[Array, "b l"], Int[Array, "b l"]]:
    """Hide ordinary tokens (0 < id < mask_id).

    Args:
        key: The step's key.
        tokens: Token ids.
        rate: Probability that an ordinary token is chosen.
        mask_id: Id of the mask token, above every ordinary id.
        rule: "bert" (IRRA: 80 % of the chosen become the mask, 10 % a random word, 10 %
            stay; position 1 is masked if none was chosen), "mask" (the weak method: all
            chosen become the mask, and position 1 always does) or "mask_free" (the
            same, with nothing special about position 1).
        rows: Global row numbers; None: 0, 1, ..
        context_length: Positions to draw numbers for; None: l. With it, captions that
            were cut to the longest of their batch are masked as if they had not been.

    Returns:
        Masked tokens and labels, which hold the original id where a token was chosen
        and 0 elsewhere. A caption without ordinary tokens is left alone: masking its
        position 1 would hide the end token, whose position carries the feature.
    """
    if rule not in MASK_RULES:
        raise ValueError(unknown("rule", rule, MASK_RULES))
    length = tokens.shape[1]
    drawn = length if context_length is None else context_length
    rows = jnp.arange(tokens.shape[0]) if rows is None else rows
    numbers = jnp.split(row_numbers(key, rows, 3 * drawn), 3, axis=1)
    choose, how, word = (part[:, :length] for part in numbers)
    ordinary = (tokens > 0) & (tokens < mask_id)
    chosen = ordinary & (choose < rate)
    first = ordinary & (jnp.arange(length) == 1)
    hidden = jnp.full_like(tokens, mask_id)
    if rule == "bert":
        first &= ~chosen.any(axis=1, keepdims=True)
        words = 1 + below(word, mask_id - 1)
        kept = jnp.where(how < MASK_SHARE + RANDOM_SHARE, words, tokens)
        hidden = jnp.where(how < MASK_SHARE, mask_id, kept)
    if rule == "mask_free":
        first = jnp.zeros_like(first)
    masked = jnp.where(chosen, hidden, tokens)
    masked = jnp.where(first, mask_id, masked)
    return masked, jnp.where(chosen | first, tokens, 0)


def edit_tokens(
    key: Key[Array, ""],
    tokens: Int[Array, "b l"],
    *,
    mask_id: int,
    mask: float = 0.12,
    replace: float = 0.04,
    remove: float = 0.04,
    rows: Int[Array, " b"] | None = None,
    context_length: int | None = None,
) -> Int[Array, "b l"]:
    """Hide, replace or remove ordinary tokens (0 < id < mask_id); none is forced.

    What stands behind a removed token moves up, and padding is appended. A short
    caption may lose all its words. The rates are RDE's, as its code computes them.

    Args:
        key: The step's key.
        tokens: Token ids.
        mask_id: Id of the mask token, above every ordinary id.
        mask: Probability that a token becomes the mask.
        replace: Probability that it becomes a random ordinary one, perhaps itself.
        remove: Probability that it is removed.
        rows: Global row numbers; None: 0, 1, ..
        context_length: See `mask_tokens`.
    """
    length = tokens.shape[1]
    drawn = length if context_length is None else context_length
    rows = jnp.arange(tokens.shape[0]) if rows is None else rows
    numbers = jnp.split(row_numbers(key, rows, 2 * drawn), 2, axis=1)
    what, word = (part[:, :length] for part in numbers)
    # Outside of every range: start, end, padding and the mask stay as they are.
    what = jnp.where((tokens > 0) & (tokens < mask_id), what, jnp.inf)
    words = 1 + below(word, mask_id - 1)
    edited = jnp.where(what < mask + replace, words, tokens)
    edited = jnp.where(what < mask, mask_id, edited)
    removed = (what >= mask + replace) & (what < mask + replace + remove)
    order = jnp.argsort(removed, axis=1, stable=True)
    return jnp.take_along_axis(jnp.where(removed, 0, edited), order, axis=1)


def mask_capacity(context_length: int, rate: float) -> int:
    """Rows of each caption that the vocabulary projection is computed for.

    Five standard deviations above the mean of a caption without padding: tokens beyond
    it are counted (`mlm_dropped`) and practically never occur.
    """
    mean = rate * context_length
    deviation = (context_length * rate * (1 - rate)) ** 0.5
    return min(context_length, int(mean + 5 * deviation) + 1)


def content_mask(tokens: Int[Array, "b l"], *, start_id: int) -> Bool[Array, "b l"]:
    """True where a token is part of the sentence: no padding, start or end token."""
    return (tokens > 0) & (tokens < start_id)
