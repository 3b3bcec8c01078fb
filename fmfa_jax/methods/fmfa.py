# SPDX-License-Identifier: Apache-2.0
"""FMFA: from a batch with person ids to its named losses (arXiv 2509.13754)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from fmfa_jax import losses, models
from fmfa_jax.methods.views import (
    augment_images,
    content_mask,
    mask_capacity,
    mask_tokens,
)
from fmfa_jax.training.gradients import Batch, Loss, Measured


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
        mlm_rule: "official", whose interaction encoder looks at padding, too | "plus",
            where it does not.
        mask_all_captions: the other losses see the masked captions too, as in the
            official code, whose loader edits captions in place. One text pass then
            serves all of them; otherwise there are two.
        augmentation: of the images.
    """

    weights: Mapping[str, float]
    options: losses.Options = field(default_factory=losses.Options)
    mask_rate: float = 0.15
    mlm_rule: str = "official"
    mask_all_captions: bool = True
    augmentation: Augmentation = field(default_factory=Augmentation)


def make_loss(config: models.ModelConfig, recipe: Recipe) -> Loss:
    """FMFA's loss.

    Args:
        config: of the model; `irr_layers` > 0 if mlm has a weight, `classes` > 0 if id
            has one.
        recipe: see `Recipe`.

    The batch holds image uint8 [b,h,w,3], tokens int32 [b,l], person int32 [b]; l may
    be less than the context length where every caption of the batch is shorter.
    """
    masks = bool(recipe.weights.get("mlm"))
    start_id = config.vocab_size - 2

    def encode(params: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
        model = models.bind(config, params)
        pixels, tokens, masked, labels = _views(config, recipe, batch, key)
        image_tokens = model.encode_images(pixels)
        text_tokens = model.encode_texts(tokens)
        image = models.global_image(image_tokens)
        text = models.global_text(text_tokens, tokens)
        features = {"image": image, "text": text}
        notes = {}
        if recipe.weights.get("efa"):
            features |= {"image_tokens": image_tokens, "text_tokens": text_tokens}
        if recipe.weights.get("id"):
            features["image_logits"] = model.identity_logits(image)
            features["text_logits"] = model.identity_logits(text)
        if masks:
            hidden = text_tokens
            if not recipe.mask_all_captions:
                hidden = model.encode_texts(masked)
            capacity = mask_capacity(config.context_length, recipe.mask_rate)
            capacity = min(capacity, tokens.shape[1])
            lengths = None
            if recipe.mlm_rule == "plus":
                lengths = tokens.argmax(axis=1) + 1  # the end has the largest id
            mlm = model.masked_logits(hidden, image_tokens, labels, capacity, lengths)
            features["masked_losses"] = losses.token_losses(mlm.logits, mlm.labels)
            notes |= {"masked_labels": mlm.labels, "dropped": mlm.dropped}
        return features, notes

    def compare(
        features: Any, notes: Any, batch: Batch, state: Any
    ) -> tuple[jax.Array, Measured]:
        del state  # FMFA remembers nothing between steps.
        notes = dict(notes)
        scalars = {}
        if masks:
            scalars["mlm_dropped"] = notes.pop("dropped").sum().astype(jnp.float32)
        inputs = losses.Inputs(
            person=batch["person"],
            # Hiding words changes nothing here: mask and random words are content, too.
            text_mask=content_mask(batch["tokens"], start_id=start_id),
            **features,
            **notes,
        )
        values = losses.objective(inputs, recipe.weights, recipe.options)
        total = values.pop("total")
        return total, Measured(scalars | values)

    return Loss(encode, compare)


def _views(
    config: models.ModelConfig, recipe: Recipe, batch: Batch, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Pixels, the captions that the losses see, the masked ones, and their labels."""
    k_image, k_text = jax.random.split(key)
    pixels = augment_images(
        k_image,
        batch["image"],
        flip=recipe.augmentation.flip,
        pad=recipe.augmentation.pad,
        erase_probability=recipe.augmentation.erase,
        rows=batch["row"],
    )
    tokens = batch["tokens"]
    if not recipe.weights.get("mlm"):
        return pixels, tokens, tokens, jnp.zeros_like(tokens)
    masked, labels = mask_tokens(
        k_text,
        tokens,
        rate=recipe.mask_rate,
        mask_id=config.vocab_size - 3,
        rows=batch["row"],
        context_length=config.context_length,
    )
    return pixels, masked if recipe.mask_all_captions else tokens, masked, labels
