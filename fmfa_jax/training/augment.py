# SPDX-License-Identifier: Apache-2.0
"""Random views of a batch, made on the device inside the step.

Every row draws from its own key, fold_in(step key, global row number), so a view does
not depend on how many devices or hosts share the batch.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from fmfa_jax.models import IMAGE_MEAN, normalize_images

ERASE_AREA = (0.02, 0.4)
ERASE_RATIO = (0.3, 3.3)
ERASE_TRIES = 10

# Of the chosen tokens: this share becomes the mask, this one a random word.
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1


def row_keys(key: Key[Array, ""], rows: int) -> Key[Array, " b"]:
    """One key per global row."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(rows))


def random_crop(
    key: Key[Array, ""], image: UInt8[Array, "h w 3"], pad: int
) -> UInt8[Array, "h w 3"]:
    """Pad with black on all sides, then cut the original size at a random place."""
    h, w, _ = image.shape
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), (h, w, 3))


def erase_box(
    key: Key[Array, ""], height: int, width: int
) -> tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """Top, left, height, width of the area to erase (0 x 0 if no try fits).

    Area uniform in ERASE_AREA of the picture, aspect log-uniform in ERASE_RATIO; the
    first of ERASE_TRIES that fits is taken (the rule of Zhong et al., "Random Erasing
    Data Augmentation", as torchvision states it).
    """
    k_area, k_ratio, k_top, k_left = jax.random.split(key, 4)
    area = (
        height
        * width
        * jax.random.uniform(
            k_area, (ERASE_TRIES,), minval=ERASE_AREA[0], maxval=ERASE_AREA[1]
        )
    )
    log_ratio = jax.random.uniform(
        k_ratio,
        (ERASE_TRIES,),
        minval=jnp.log(ERASE_RATIO[0]),
        maxval=jnp.log(ERASE_RATIO[1]),
    )
    hs = jnp.round(jnp.sqrt(area * jnp.exp(log_ratio))).astype(jnp.int32)
    ws = jnp.round(jnp.sqrt(area / jnp.exp(log_ratio))).astype(jnp.int32)
    fits = (hs < height) & (ws < width)
    first = jnp.argmax(fits)
    h = jnp.where(fits.any(), hs[first], 0)
    w = jnp.where(fits.any(), ws[first], 0)
    top = jax.random.randint(k_top, (), 0, height - h + 1)
    left = jax.random.randint(k_left, (), 0, width - w + 1)
    return top, left, h, w


def erase(
    key: Key[Array, ""], pixels: Float[Array, "h w 3"], probability: float
) -> Float[Array, "h w 3"]:
    """Fill a random box of a NORMALISED image with CLIP's mean colour vector.

    The mean is not normalised itself, which makes the fill a grey-green instead of the
    neutral zero: a quirk of the official code that its numbers include.
    """
    k_apply, k_box = jax.random.split(key)
    height, width, _ = pixels.shape
    top, left, h, w = erase_box(k_box, height, width)
    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    inside = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
    inside &= jax.random.uniform(k_apply) < probability
    return jnp.where(inside[..., None], jnp.asarray(IMAGE_MEAN, pixels.dtype), pixels)


def augment_images(
    key: Key[Array, ""],
    images: UInt8[Array, "b h w 3"],
    *,
    flip: float,
    pad: int,
    erase_probability: float,
) -> Float[Array, "b h w 3"]:
    """Flip, pad and crop, normalise, erase; each image with its own key.

    Args:
        key: the step's key.
        images: [b,h,w,3] uint8.
        flip: probability of a horizontal flip.
        pad: zero padding before the crop, pixels.
        erase_probability: probability that a box is erased.
    """

    def one(key: Array, image: Array) -> Array:
        k_flip, k_crop, _ = jax.random.split(key, 3)
        flipped = jax.random.uniform(k_flip) < flip
        image = jnp.where(flipped, image[:, ::-1], image)
        return random_crop(k_crop, image, pad)

    def erase_one(key: Array, pixels: Array) -> Array:
        return erase(jax.random.split(key, 3)[2], pixels, erase_probability)

    keys = row_keys(key, images.shape[0])
    pixels = normalize_images(jax.vmap(one)(keys, images))
    return jax.vmap(erase_one)(keys, pixels)


def mask_tokens(
    key: Key[Array, ""],
    tokens: Int[Array, "b l"],
    *,
    rate: float,
    mask_id: int,
    rule: str = "bert",
) -> tuple[Int[Array, "b l"], Int[Array, "b l"]]:
    """Hide ordinary tokens (0 < id < mask_id); returns (masked tokens, labels).

    Args:
        key: the step's key.
        tokens: [b,l] ids.
        rate: probability that an ordinary token is chosen.
        mask_id: id of the mask token, which is above every ordinary id.
        rule: "bert" (IRRA: of the chosen, 80 % mask, 10 % random word, 10 % kept; if
            none was chosen position 1 is masked) | "mask" (weak method: all chosen
            become the mask, position 1 always) | "mask_free" (the same without the
            rule about position 1).

    Returns:
        Labels hold the original id where a token was chosen, elsewhere 0. A caption
        without ordinary tokens stays as it is: masking position 1 there would hide the
        end token, whose place carries the sentence's feature.
    """
    length = tokens.shape[1]

    def one(key: Array, row: Array) -> tuple[Array, Array]:
        k_choose, k_how, k_word = jax.random.split(key, 3)
        ordinary = (row > 0) & (row < mask_id)
        chosen = ordinary & (jax.random.uniform(k_choose, (length,)) < rate)
        first = (jnp.arange(length) == 1) & ordinary
        if rule == "bert":
            first &= ~chosen.any()
            how = jax.random.uniform(k_how, (length,))
            words = jax.random.randint(k_word, (length,), 1, mask_id)
            hidden = jnp.where(how < MASK_SHARE + RANDOM_SHARE, words, row)
            hidden = jnp.where(how < MASK_SHARE, mask_id, hidden)
        elif rule in ("mask", "mask_free"):
            first &= rule == "mask"
            hidden = jnp.full_like(row, mask_id)
        else:
            raise ValueError(f"wanted a rule among bert, mask, mask_free; got {rule!r}")
        masked = jnp.where(chosen, hidden, row)
        masked = jnp.where(first, mask_id, masked)
        return masked, jnp.where(chosen | first, row, 0)

    return jax.vmap(one)(row_keys(key, tokens.shape[0]), tokens)


def mask_capacity(context_length: int, rate: float) -> int:
    """Rows per caption that the vocabulary projection is computed for.

    Five standard deviations above the mean of a caption without any padding: a token
    beyond it is counted (`mlm_dropped`), and practically never met.
    """
    mean = rate * context_length
    deviation = (context_length * rate * (1 - rate)) ** 0.5
    return min(context_length, int(mean + 5 * deviation) + 1)


def content_mask(tokens: Int[Array, "b l"], *, start_id: int) -> Bool[Array, "b l"]:
    """True where a token is part of the sentence: not padding, start or end."""
    return (tokens > 0) & (tokens < start_id)
