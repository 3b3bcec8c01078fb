# SPDX-License-Identifier: Apache-2.0
"""Dual-granularity weak supervision: from pairs to named losses (arXiv 2507.06744).

A batch holds image uint8 [b,h,w,3], tokens int32 [b,l], pair int32 [b] (the row in the
memory) and image_id int32 [b]. Person ids are not part of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fmfa_jax import models
from fmfa_jax.methods import weak as association
from fmfa_jax.methods.fmfa import Augmentation
from fmfa_jax.methods.views import augment_images, mask_tokens
from fmfa_jax.training.gradients import Batch, Loss, Measured

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


def make_loss(config: models.ModelConfig, recipe: WeakRecipe, mesh: Mesh) -> Loss:
    """The weak method's loss.

    It reads the step number and, with a global loss, the OLD memory from the state, and
    hands on the new memory.
    """
    has_view = bool(recipe.weights.get("consistency"))

    def encode(params: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
        model = models.bind(config, params)
        # The clean view has no augmentation at all, not even a flip.
        image = models.normalize_images(batch["image"])
        text = batch["tokens"]
        if not has_view:
            return _encode(model, image, text, ("image", "text")), {}
        views = _augmented(config, recipe, batch, key)
        clean = _encode(model, image, text, ("image", "text"))
        return clean | _encode(model, *views, ("image_view", "text_view")), {}

    def compare(
        features: Any, notes: Any, batch: Batch, state: Any
    ) -> tuple[jax.Array, Measured]:
        del notes
        memory = state.get("memory")
        ready = state["step"] >= recipe.first_epoch
        result = association.weak_objective(
            association.WeakInputs(
                index=batch["pair"], image_id=batch["image_id"], **features
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
                features["image"],
                features["text"],
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

    return Loss(encode, compare)


def _encode(
    model: models.FMFA, pixels: jax.Array, tokens: jax.Array, names: tuple[str, str]
) -> dict[str, jax.Array]:
    """The global features of one view under their two names."""
    image = models.global_image(model.encode_images(pixels))
    text = models.global_text(model.encode_texts(tokens), tokens)
    return dict(zip(names, (image, text), strict=True))


def _augmented(
    config: models.ModelConfig, recipe: WeakRecipe, batch: Batch, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Pixels and captions of the augmented view."""
    k_image, k_text = jax.random.split(key)
    pixels = augment_images(
        k_image,
        batch["image"],
        flip=recipe.augmentation.flip,
        pad=recipe.augmentation.pad,
        erase_probability=recipe.augmentation.erase,
        rows=batch["row"],
    )
    tokens, _ = mask_tokens(
        k_text,
        batch["tokens"],
        rate=recipe.mask_rate,
        mask_id=config.vocab_size - 3,
        rule={"always": "mask", "never": "mask_free"}[recipe.mask_first],
        rows=batch["row"],
        context_length=config.context_length,
    )
    return pixels, tokens


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
