# SPDX-License-Identifier: Apache-2.0
"""Dual-granularity weak supervision: from pairs to named losses (arXiv 2507.06744).

A batch holds image uint8 [b,h,w,3], tokens int32 [b,l], pair int32 [b] (the row in the
memory) and image_id int32 [b]. Person ids are not part of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fmfa_jax import models
from fmfa_jax.losses import association
from fmfa_jax.training.augment import augment_images, mask_tokens
from fmfa_jax.training.step import Measured
from fmfa_jax.training.supervised import Augmentation

# What the loader delivers and the step may see.
BATCH_KEYS = ("image", "tokens", "pair", "image_id")


@dataclass(frozen=True)
class WeakRecipe:
    """What the weak method computes.

    Attributes:
        weights: loss name -> weight; 0 is not computed.
        options: of the losses.
        mask_rate: share of the ordinary tokens hidden in the augmented view.
        mask_first: "always" (the official code hides position 1) | "never" more than
            any other.
        augmentation: of the augmented view's images.
        rate: weight of the NEW feature in the memory's update (11).
        memory_dtype: storage of the memory.
        first_epoch: steps that only write the memory.
    """

    weights: Mapping[str, float]
    first_epoch: int
    options: association.WeakOptions = field(default_factory=association.WeakOptions)
    mask_rate: float = 0.5
    mask_first: str = "always"
    augmentation: Augmentation = field(default_factory=Augmentation)
    rate: float = 0.9
    memory_dtype: str = "float32"


def make_loss(
    config: models.ModelConfig, recipe: WeakRecipe, mesh: Mesh
) -> Callable[..., Any]:
    """The function `loss(params, batch, key, state) -> (total, Measured)`.

    `state` carries the step number and, with a global loss, the memory; the loss reads
    the OLD memory and hands on the new one.
    """
    mask_id = config.vocab_size - 3
    has_view = bool(recipe.weights.get("consistency"))
    rule = {"always": "mask", "never": "mask_free"}[recipe.mask_first]

    def augmented(batch: Mapping[str, jax.Array], key: jax.Array) -> tuple:
        k_image, k_text = jax.random.split(key)
        pixels = augment_images(
            k_image,
            batch["image"],
            flip=recipe.augmentation.flip,
            pad=recipe.augmentation.pad,
            erase_probability=recipe.augmentation.erase,
        )
        tokens, _ = mask_tokens(
            k_text,
            batch["tokens"],
            rate=recipe.mask_rate,
            mask_id=mask_id,
            rule=rule,
        )
        return pixels, tokens

    def loss(
        params: Any, batch: Mapping[str, jax.Array], key: jax.Array, state: Any
    ) -> tuple[jax.Array, Measured]:
        model = models.bind(config, params)

        def encode(pixels: jax.Array, tokens: jax.Array) -> tuple:
            image = models.global_image(model.encode_images(pixels))
            return image, models.global_text(model.encode_texts(tokens), tokens)

        # The clean view has no augmentation at all, not even a flip.
        image, text = encode(models.normalize_images(batch["image"]), batch["tokens"])
        views = encode(*augmented(batch, key)) if has_view else (None, None)
        memory = state.get("memory")
        ready = state["step"] >= recipe.first_epoch
        result = association.weak_objective(
            association.WeakInputs(
                image, text, batch["pair"], *views, image_id=batch["image_id"]
            ),
            memory,
            recipe.weights,
            ready=ready,
            options=recipe.options,
            mesh=mesh,
        )
        values = dict(result.losses)
        total = values.pop("total")
        scalars = values | result.measurements
        if memory is not None:
            update = association.update_bank(
                memory,
                image,
                text,
                batch["pair"],
                ready=ready,
                rate=recipe.rate,
                # Read before written, or XLA copies both banks at every step.
                after=total,
                mesh=mesh,
            )
            memory = update.bank
            scalars["memory_skipped"] = update.skipped.astype(jnp.float32)
        return total, Measured(scalars, memory, links(result.mined, batch["pair"]))

    return loss


def links(mined: association.Mined | None, index: jax.Array) -> Any:
    """The mined rows of a batch, for a judgement outside the step."""
    if mined is None:
        return None
    return {"slot": mined.slot, "valid": mined.valid, "index": index}


def make_memory(
    config: models.ModelConfig, recipe: WeakRecipe, mesh: Mesh, *, pairs: int
) -> association.Bank | None:
    """The empty memory of a run; None where no loss reads it."""
    if not recipe.weights.get("global"):
        return None
    return association.init_bank(
        pairs, config.embed_dim, dtype=recipe.memory_dtype, mesh=mesh
    )
