# SPDX-License-Identifier: Apache-2.0
"""FMFA: from a batch with person ids to its named losses (arXiv 2509.13754)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from fmfa_jax import losses, models
from fmfa_jax.training.augment import (
    augment_images,
    content_mask,
    mask_capacity,
    mask_tokens,
)
from fmfa_jax.training.step import Measured


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and sizes of the random views; see augment.py."""

    flip: float = 0.5
    pad: int = 10
    erase: float = 0.5


@dataclass(frozen=True)
class Recipe:
    """What FMFA computes: weights of the losses, their options, and the views.

    Attributes:
        weights: loss name -> weight; 0 is not computed.
        options: passed to `losses.objective`.
        mask_rate: share of the ordinary tokens hidden for mlm.
        mask_all_captions: the other losses see the masked captions too, as in the
            official code, whose loader edits captions in place. One text pass then
            serves all of them; otherwise there are two.
        augmentation: of the images.
    """

    weights: Mapping[str, float]
    options: losses.Options = field(default_factory=losses.Options)
    mask_rate: float = 0.15
    mask_all_captions: bool = True
    augmentation: Augmentation = field(default_factory=Augmentation)


def make_loss(config: models.ModelConfig, recipe: Recipe) -> Callable[..., Any]:
    """The function `loss(params, batch, key, state) -> (total, Measured)` of FMFA.

    Args:
        config: of the model; `irr_layers` > 0 if mlm has a weight, `classes` > 0 if id
            has one.
        recipe: see `Recipe`.

    The batch holds image uint8 [b,h,w,3], tokens int32 [b,l], person int32 [b].
    """
    masks = bool(recipe.weights.get("mlm"))
    mask_id, start_id = config.vocab_size - 3, config.vocab_size - 2
    capacity = mask_capacity(config.context_length, recipe.mask_rate)

    def views(batch: Mapping[str, jax.Array], key: jax.Array) -> tuple:
        k_image, k_text = jax.random.split(key)
        pixels = augment_images(
            k_image,
            batch["image"],
            flip=recipe.augmentation.flip,
            pad=recipe.augmentation.pad,
            erase_probability=recipe.augmentation.erase,
        )
        tokens = batch["tokens"]
        if not masks:
            return pixels, tokens, tokens, jnp.zeros_like(tokens)
        masked, labels = mask_tokens(
            k_text, tokens, rate=recipe.mask_rate, mask_id=mask_id
        )
        return pixels, masked if recipe.mask_all_captions else tokens, masked, labels

    def loss(
        params: Any, batch: Mapping[str, jax.Array], key: jax.Array, state: Any
    ) -> tuple[jax.Array, Measured]:
        del state  # FMFA remembers nothing between steps.
        model = models.bind(config, params)
        pixels, tokens, masked, labels = views(batch, key)
        image_tokens = model.encode_images(pixels)
        text_tokens = model.encode_texts(tokens)
        image = image_tokens[:, 0]
        text = models.global_text(text_tokens, tokens)
        inputs = {
            "image_tokens": image_tokens,
            "text_tokens": text_tokens,
            "image": image,
            "text": text,
            "person": batch["person"],
            "text_mask": content_mask(tokens, start_id=start_id),
        }
        scalars = {}
        if recipe.weights.get("id"):
            inputs["image_logits"] = model.identity_logits(image)
            inputs["text_logits"] = model.identity_logits(text)
        if masks:
            hidden = text_tokens
            if not recipe.mask_all_captions:
                hidden = model.encode_texts(masked)
            mlm = model.masked_logits(hidden, image_tokens, labels, capacity)
            inputs |= {"masked_logits": mlm.logits, "masked_labels": mlm.labels}
            scalars["mlm_dropped"] = mlm.dropped.astype(jnp.float32)
        values = losses.objective(
            losses.Inputs(**inputs), recipe.weights, recipe.options
        )
        total = values.pop("total")
        return total, Measured(scalars | values)

    return loss
