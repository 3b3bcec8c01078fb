# SPDX-License-Identifier: Apache-2.0
"""RDE: from a batch, of whose pairs some may be wrong, to its named losses.

Two embeddings of each pair are learned: BGE, the global features, and TSE, pooled from
the tokens that these attend to. Before each epoch the losses on both say which pairs to
learn from (CCD, confident consensus division, see `consensus`).

Source: Qin et al., CVPR 2024, "Noisy-Correspondence Learning for Text-to-Image Person
Re-identification", and its official code.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from fmfa_jax import losses, models
from fmfa_jax.losses.classification import pair_identity
from fmfa_jax.machines.mesh import encoding, replicated
from fmfa_jax.methods.method import (
    Batch,
    Epoch,
    Measured,
    Method,
    State,
    Task,
    need_persons,
    weighted,
    with_rows,
)
from fmfa_jax.methods.rde import consensus
from fmfa_jax.methods.rde.recipe import Recipe
from fmfa_jax.methods.views import augment_images, edit_tokens
from fmfa_jax.models.selection import Moments, Selected

SUMMED = ("tal", "trl")
WEIGHTS = "pair_weights"
STATISTICS = ("norm/mean", "norm/variance")


@dataclass(frozen=True)
class RDEMethod(Method):
    """A loss on two embeddings, over the pairs that both find plausible.

    The batch holds image uint8 [b,h,w,3], tokens int32 [b,l], person int32 [b] and pair
    int32 [b]. The state has the entry "pair_weights" float32 [pairs], 0 or 1. The head
    of TSE is applied in `compare`, because its batch norm may mix rows.

    Attributes:
        recipe: Weights and options.
        mesh: Devices that batches are spread over.
        pairs: Training pairs.
        seed: The run's.
        wrong: Which pairs are known to be wrong, for `summarize` alone.
    """

    recipe: Recipe
    mesh: Mesh
    pairs: int = 0
    seed: int = 0
    wrong: Bool[np.ndarray, " pairs"] | None = field(default=None, compare=False)

    Recipe: ClassVar[type] = Recipe
    batch_keys: ClassVar[tuple[str, ...]] = ("image", "tokens", "person", "pair")

    @classmethod
    def check(
        cls, recipe: Recipe, *, sampler: str, caption_buckets: Sequence[int]
    ) -> None:
        """Refuse to cut off padding that enters the statistics of batch norm."""
        del sampler
        if caption_buckets and recipe.rde.batch_norm == "batch":
            raise ValueError(
                f"data.caption_buckets={tuple(caption_buckets)} cuts off padding, "
                "which enters the batch's statistics: wanted rde.batch_norm=frozen or "
                "no buckets"
            )

    @classmethod
    def sized(cls, recipe: Recipe, model: models.ModelConfig) -> models.ModelConfig:
        """The towers, and the heads of TSE and of people where theirs have a weight."""
        return replace(
            models.towers_only(model),
            tse_width=recipe.rde.width if recipe.losses.get("tse") else 0,
            tse_ratio=recipe.rde.ratio,
            classes=model.classes if recipe.losses.get("id") else 0,
        )

    @classmethod
    def for_task(cls, recipe: Recipe, task: Task) -> "RDEMethod":
        """RDE on pairs that all have a person id."""
        need_persons(task, "RDE")
        return cls(
            task.model,
            recipe,
            task.mesh,
            pairs=len(task.split.pairs),
            seed=task.seed,
            wrong=task.split.noisy,
        )

    def encode(self, params: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
        """Global features, the tokens that TSE selects, and scores of people."""
        model, notes = models.bind(self.model, params), {}
        pixels, tokens = self._views(batch, key)
        if self.model.tse_width:
            image, patches = model.selected_images(pixels)
            text, words = model.selected_texts(tokens)
            features = {"patches": patches.tokens, "words": words.tokens}
            notes = {"patches": patches.count, "words": words.count}
        else:
            image = models.global_image(model.encode_images(pixels))
            text = models.global_text(model.encode_texts(tokens), tokens)
            features = {}
        if self.model.classes:
            features["image_logits"] = model.identity_logits(image)
            features["text_logits"] = model.identity_logits(text)
        return features | {"image": image, "text": text}, notes

    def compare(
        self, features: Any, notes: Any, batch: Batch, state: State
    ) -> tuple[Float[Array, ""], Measured]:
        """The weighted sum of the terms over the pairs that are kept."""
        statistics = {"frozen": "kept", "batch": "batch"}[self.recipe.rde.batch_norm]
        pairs, kept = self.pair_losses(
            features, notes, batch, state["params"], statistics=statistics
        )
        weight = state[WEIGHTS][batch["pair"]]
        summed = self.recipe.rde.loss in SUMMED
        terms = {
            name: functools.partial(_over, each, weight, summed=summed)
            for name, each in pairs.items()
        }
        if self.model.classes:
            people = pair_identity(
                features["image_logits"], features["text_logits"], batch["person"]
            )
            terms["id"] = functools.partial(_over, people, weight, summed=False)
        total, scalars = weighted(terms, self.recipe.losses)
        update = kept if statistics == "batch" else None
        records = {"pair": batch["pair"], "weight": weight}
        return total, Measured(scalars, update, records)

    def pair_losses(
        self, features: Any, notes: Any, batch: Batch, params: Any, *, statistics: str
    ) -> tuple[dict[str, Float[Array, " b"]], dict[str, Moments]]:
        """The loss of each pair on both embeddings, and what batch norm should keep.

        Args:
            features: What `encode` gave.
            notes: What `encode` gave.
            batch: The persons of the GLOBAL batch.
            params: Parameters, of which the head is used.
            statistics: See `SelectionHead`.
        """
        image, text, person = features["image"], features["text"], batch["person"]
        pairs = {"bge": self._loss(image, text, person)}
        if not self.model.tse_width:
            return pairs, {}
        with encoding(self.mesh):  # the head's parameters travel, never rows
            heads = models.bind(self.model, params).tse
        patches, words = (
            Selected(features[name], notes[name]) for name in ("patches", "words")
        )
        image = heads.image(patches, statistics=statistics)
        text = heads.text(words, statistics=statistics)
        pairs["tse"] = self._loss(image.features, text.features, person)
        return pairs, {"image": image.kept, "text": text.kept}

    def advance(self, state: State, update: Any, taken: Bool[Array, ""]) -> State:
        """The running statistics of batch norm after a batch."""
        if not update:
            return {}
        params = state["params"]
        heads = dict(params["tse"])
        for side, moments in update.items():
            norm = heads[side]["norm"]
            new = {
                name: jnp.where(taken, value, norm[name])
                for name, value in moments._asdict().items()
            }
            heads[side] = heads[side] | {"norm": norm | new}
        return {"params": params | {"tse": heads}}

    def initial_state(self) -> State:
        """Every pair counts until the first division."""
        return {WEIGHTS: self._placed(np.ones(self.pairs, np.float32))}

    def before_epoch(self, state: State, epoch: Epoch) -> State:
        """Divide the pairs by their losses under the present weights."""
        if self.recipe.rde.division == "none":
            return state
        steps = enumerate(epoch.batches(), int(state["step"]))
        measured = (self._measure(state["params"], x, np.int32(n)) for n, x in steps)
        found = consensus.collect(measured, pairs=self.pairs)
        weights = consensus.weights(
            found,
            mixture=self.recipe.rde.mixture,
            seed=self.seed,
            epoch=epoch.number,
        )
        return state | {WEIGHTS: self._placed(weights)}

    def parameter_group(self, path: str) -> tuple[float, bool] | None:
        """The head learns at a rate of its own; statistics are not learned."""
        if not path.startswith("tse/"):
            return None
        if path.endswith(STATISTICS):
            return 0.0, False
        factor = self.recipe.rde.lr / self.recipe.optimizer.lr
        return factor, not path.endswith("bias")

    def summarize(self, records: Sequence[Any]) -> dict[str, float]:
        """The share of pairs that were kept; with the truth known, how well chosen."""
        pair, weight = (
            np.concatenate([each[name] for each in records])
            for name in ("pair", "weight")
        )
        return consensus.quality(weight > 0, pair, self.wrong)

    @functools.cached_property
    def _measure(self) -> Any:
        """The compiled (params, batch, step) -> losses and pairs, on every device."""

        def measure(params: Any, batch: Batch, step: Array) -> dict[str, Array]:
            """Return the losses of each pair of a batch."""
            # The views are those that the step itself will see.
            key = jax.random.fold_in(jax.random.key(self.seed), step)
            batch = with_rows(batch)
            with encoding(self.mesh):
                features, notes = self.encode(params, batch, key)
            pairs, _ = self.pair_losses(
                features, notes, batch, params, statistics="kept"
            )
            return pairs | {"pair": batch["pair"]}

        return jax.jit(measure, out_shardings=replicated(self.mesh))

    def _placed(self, values: np.ndarray) -> Array:
        return jax.device_put(values, replicated(self.mesh))

    def _views(self, batch: Batch, key: jax.Array) -> tuple[Array, Array]:
        """Pixels, and captions with words hidden, replaced or removed."""
        k_image, k_text = jax.random.split(key)
        rows, options = batch["row"], self.recipe.rde
        pixels = augment_images(k_image, batch["image"], self.recipe.augment, rows=rows)
        tokens = edit_tokens(
            k_text,
            batch["tokens"],
            mask_id=self.model.vocab_size - 3,
            mask=options.mask,
            replace=options.replace,
            remove=options.remove,
            rows=rows,
            context_length=self.model.context_length,
        )
        return pixels, tokens

    def _loss(self, image: Array, text: Array, person: Array) -> Float[Array, " b"]:
        options, scale = self.recipe.rde, self.recipe.loss.scale
        ranked = {"tau": options.tau, "margin": options.margin}
        if options.loss == "tal":
            return losses.tal(image, text, person, **ranked)
        if options.loss == "trl":
            return losses.trl(image, text, person, **ranked)
        if options.loss == "itc":
            return losses.pair_itc(image, text, scale=scale)
        return losses.pair_sdm(image, text, person, scale=scale)


def _over(pairs: Array, weight: Array, *, summed: bool) -> Float[Array, ""]:
    """The sum over the pairs that are kept, or their mean; 0 where none is."""
    total = jnp.sum(weight * pairs)
    return total if summed else total / jnp.maximum(weight.sum(), 1)
