# SPDX-License-Identifier: Apache-2.0
"""Dual-granularity weak supervision: from pairs to named losses (arXiv 2507.06744).

There is no clustering: links between pairs are thresholded cosines, made anew at every
step, and the only state is a memory of one image row and one text row for each training
pair. No person id reaches the step; `quality` uses them on the host, where they happen
to be known, to say how good the links were.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from fmfa_jax import losses, models
from fmfa_jax.losses import links
from fmfa_jax.methods.method import (
    Batch,
    HostBatch,
    Measured,
    Method,
    State,
    Task,
    weighted,
)
from fmfa_jax.methods.views import augment_images, mask_tokens
from fmfa_jax.methods.weak import memory, mining, quality
from fmfa_jax.methods.weak.recipe import MASK_FIRST, Recipe


@dataclass(frozen=True)
class WeakMethod(Method):
    """Contrast, local relations, a global memory, and an augmented view.

    The batch holds image uint8 [b,h,w,3], tokens int32 [b,l], pair int32 [b] (the row
    in the memory) and image_id int32 [b]. With the global loss the state has the entry
    "memory", see `memory`; a step mines in the OLD memory and then updates it.

    Attributes:
        recipe: Weights and options.
        mesh: Devices that the memory is spread over; None: one device.
        pairs: Training pairs, as many as the memory has rows.
        first_epoch: Steps that only write the memory.
        persons: Person of each training pair where known, for `summarize` alone.
        block: Rows of the memory that are compared at once; None: by the backend. It
            changes the speed, never a result.
    """

    recipe: Recipe
    mesh: Mesh | None = None
    pairs: int = 0
    first_epoch: int = 0
    persons: Int[np.ndarray, " pairs"] | None = field(default=None, compare=False)
    block: int | None = None

    Recipe: ClassVar[type] = Recipe
    batch_keys: ClassVar[tuple[str, ...]] = ("image", "tokens", "pair", "image_id")

    @classmethod
    def check(
        cls, recipe: Recipe, *, sampler: str, caption_buckets: Sequence[int]
    ) -> None:
        """Refuse to sample by identities, which the method does not know."""
        del recipe, caption_buckets
        if sampler != "shuffle":
            raise ValueError(
                "the weak method knows no identities to sample: wanted data.sampler="
                f"shuffle, got {sampler!r}"
            )

    @classmethod
    def for_task(cls, recipe: Recipe, task: Task) -> "WeakMethod":
        """The weak method with a memory for the run's training pairs."""
        pairs = len(task.split.pairs)
        if pairs < task.batch_size:
            raise ValueError(
                "the weak method needs at least one whole batch of different pairs: "
                f"the data set has {pairs}, train.batch_size is {task.batch_size}; "
                f"lower it to at most {pairs}"
            )
        return cls(
            task.model,
            recipe,
            mesh=task.mesh,
            pairs=pairs,
            first_epoch=task.steps_per_epoch,
            persons=task.split.pair_persons,
        )

    def encode(self, params: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
        """Global features of the clean view, without even a flip, and of the other."""
        model = models.bind(self.model, params)
        pixels = models.normalize_images(batch["image"])
        features = _features(model, pixels, batch["tokens"], ("image", "text"))
        if self.recipe.losses.get("consistency"):
            view = self._augmented(batch, key)
            features |= _features(model, *view, ("image_view", "text_view"))
        return features, {}

    def compare(
        self, features: Any, notes: Any, batch: Batch, state: State
    ) -> tuple[Float[Array, ""], Measured]:
        """The objective (22) against the OLD memory, and the rows to write into it."""
        del notes
        image, text = features["image"], features["text"]
        options, scale = self.recipe.weak, self.recipe.loss.scale
        image_id = batch["image_id"] if options.same_image == "linked" else None
        bank, ready = state.get("memory"), state["step"] >= self.first_epoch
        mined = None
        if self.recipe.losses.get("global"):
            mined = self._mine(bank, image, batch["pair"], ready)
        terms = {
            "itc": lambda: losses.itc(
                image, text, scale=scale, reduction=options.itc_reduction
            ),
            "local": lambda: self._local(image, text, image_id),
            "global": lambda: self._global(features, batch, bank, mined, ready),
            "consistency": lambda: self._local(
                features["image_view"], features["text_view"], image_id
            ),
        }
        total, scalars = weighted(terms, self.recipe.losses)
        relations = links.local_relations(
            image, text, threshold=options.threshold, image_id=image_id
        )
        scalars["linked_share"] = links.linked_share(relations)
        if mined is None:
            return total, Measured(scalars)
        found = jnp.sum(mined.valid, axis=1, dtype=jnp.float32)
        scalars["links_per_anchor"] = jnp.mean(found)
        rows = {"image": image, "text": text, "index": batch["pair"]}
        enters = memory.enters(bank, **rows)
        scalars["memory_skipped"] = jnp.sum(~enters, dtype=jnp.float32)
        records = {"slot": mined.slot, "valid": mined.valid, "index": batch["pair"]}
        return total, Measured(scalars, rows, records)

    def advance(self, state: State, update: Any, taken: Bool[Array, ""]) -> State:
        """The memory with the rows of the batch written into it."""
        if update is None:
            return {}
        bank = memory.update_bank(
            state["memory"],
            **update,
            ready=state["step"] >= self.first_epoch,
            rate=self.recipe.weak.rate,
            taken=taken,
            mesh=self.mesh,
        )
        return {"memory": bank}

    def initial_state(self) -> State:
        """An empty memory where a loss reads it."""
        if not self.recipe.losses.get("global"):
            return {}
        dtype, width = self.recipe.weak.memory_dtype, self.model.embed_dim
        bank = memory.init_bank(self.pairs, width, dtype=dtype, mesh=self.mesh)
        return {"memory": bank}

    def check_batch(self, batch: HostBatch) -> None:
        """Refuse a batch that names a training pair twice, or none."""
        quality.check_indices(batch["pair"], pairs=self.pairs)

    def summarize(self, records: Sequence[Any]) -> dict[str, float]:
        """Precision and recall of the mined links, where person ids are known."""
        return quality.mined_quality(records, self.persons)

    def warning(self, scalars: Mapping[str, float]) -> str | None:
        """Tell of features that are too alike for thresholds to mean anything."""
        return quality.start_warning(
            scalars["linked_share"], threshold=self.recipe.weak.threshold
        )

    def _augmented(self, batch: Batch, key: jax.Array) -> tuple[Array, Array]:
        """Pixels and captions of the augmented view."""
        k_image, k_text = jax.random.split(key)
        rows = batch["row"]
        pixels = augment_images(k_image, batch["image"], self.recipe.augment, rows=rows)
        tokens, _ = mask_tokens(
            k_text,
            batch["tokens"],
            rate=self.recipe.mask.rate,
            mask_id=self.model.vocab_size - 3,
            rule=MASK_FIRST[self.recipe.weak.mask_first],
            rows=rows,
            context_length=self.model.context_length,
        )
        return pixels, tokens

    def _local(
        self, image: Array, text: Array, image_id: Array | None
    ) -> Float[Array, ""]:
        options = self.recipe.weak
        return losses.local_loss(
            image,
            text,
            scale=self.recipe.loss.scale,
            threshold=options.threshold,
            strength=options.strength,
            image_id=image_id,
        )

    def _mine(
        self, bank: memory.Bank, image: Array, index: Array, ready: Bool[Array, ""]
    ) -> links.Mined:
        """Rows linked to each anchor; none is valid before the memory is `ready`."""
        options = self.recipe.weak
        found = mining.mine(
            bank,
            image,
            index,
            links=options.links,
            threshold=options.threshold,
            exclude=options.exclude,
            block=self.block,
            mesh=self.mesh,
        )
        return found._replace(valid=found.valid & ready)

    def _global(
        self,
        features: Any,
        batch: Batch,
        bank: memory.Bank,
        mined: links.Mined,
        ready: Bool[Array, ""],
    ) -> Float[Array, ""]:
        options = self.recipe.weak
        linked = options.same_image == "linked"
        value = losses.global_loss(
            features["image"],
            features["text"],
            mined,
            *memory.take_rows(bank, mined.slot, mesh=self.mesh),
            scale=self.recipe.loss.scale,
            rows=options.rows,
            targets=options.targets,
            index=batch["pair"],
            image_id=batch["image_id"] if linked else None,
        )
        return jnp.where(ready, value, 0.0)


def _features(
    model: models.FMFA, pixels: Array, tokens: Array, names: tuple[str, str]
) -> dict[str, Float[Array, "b d"]]:
    """The global features of one view under their two names."""
    image = models.global_image(model.encode_images(pixels))
    text = models.global_text(model.encode_texts(tokens), tokens)
    return dict(zip(names, (image, text), strict=True))
