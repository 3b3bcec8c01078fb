# SPDX-License-Identifier: Apache-2.0
"""FMFA: from a batch with person ids to its named losses (arXiv 2509.13754)."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from fmfa_jax import losses, models
from fmfa_jax.losses import alignment, matching
from fmfa_jax.machines.mesh import BATCH_AXES, over_shards
from fmfa_jax.methods.method import (
    Batch,
    Measured,
    Method,
    State,
    Task,
    check_weights,
    need_persons,
    weighted,
)
from fmfa_jax.methods.views import (
    Augmentation,
    augment_images,
    content_mask,
    mask_capacity,
    mask_tokens,
)
from fmfa_jax.options import Above, Between, OneOf, Options

TERMS = ("a_sdm", "cmpm", "efa", "id", "itc", "mlm", "sdm", "tal")
MLM_RULES = ("official", "plus")
POSITIVES = ("pair", "person")


@dataclass(frozen=True, kw_only=True)
class LossOptions(Options, section="loss"):
    """How the terms compute; the defaults are the released code's.

    Attributes:
        scale: 1 / temperature of sdm, a_sdm and itc.
        a_sdm_weight: See `matching.sdm`.
        a_sdm_alpha: Strength of that weight.
        efa_rule: See `alignment.efa`.
        mlm_rule: "official": the interaction encoder attends to padding as well;
            "plus": it does not.
        itc_positives: "pair", or "person": all pairs of a person match.
        tal_tau: Temperature of tal.
        tal_margin: By how much tal wants a positive to beat the negatives.
    """

    scale: Annotated[float, Above(0)] = 50.0
    a_sdm_weight: Annotated[str, OneOf(matching.WEIGHTS)] = "official"
    a_sdm_alpha: Annotated[float, Between(0)] = matching.ALPHA["official"]
    efa_rule: Annotated[str, OneOf(alignment.RULES)] = "official"
    mlm_rule: Annotated[str, OneOf(MLM_RULES)] = "official"
    itc_positives: Annotated[str, OneOf(POSITIVES)] = "pair"
    tal_tau: Annotated[float, Above(0, 1)] = 0.015
    tal_margin: Annotated[float, Between(0, 4)] = 0.1


@dataclass(frozen=True, kw_only=True)
class Masking(Options, section="mask"):
    """How words are hidden for mlm.

    Attributes:
        rate: Share of the ordinary tokens that is chosen.
        all_captions: The other losses see the masked captions too, as in the official
            code, whose loader edits captions in place. One text pass then serves all
            losses; otherwise there are two.
    """

    rate: Annotated[float, Between(0, 1)] = 0.15
    all_captions: bool = True


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What FMFA computes: weights of its terms, their options, and the views."""

    losses: Mapping[str, Any]
    loss: LossOptions = field(default_factory=LossOptions)
    mask: Masking = field(default_factory=Masking)
    augment: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        check_weights(self.losses, TERMS)

    @property
    def needs_people(self) -> bool:
        """Whether a loss asks whom a picture shows."""
        free = {"mlm", "itc"} if self.loss.itc_positives == "pair" else {"mlm"}
        return any(self.losses[name] for name in self.losses.keys() - free)


@dataclass(frozen=True)
class FMFAMethod(Method):
    """SDM or A-SDM, identity, masked language and explicit alignment losses.

    The batch holds image uint8 [b,h,w,3], tokens int32 [b,l] and person int32 [b]; l
    may be less than the context length where all captions of the batch are shorter.

    Attributes:
        recipe: Weights and options.
        mesh: Devices that batches are spread over; None: one device.
    """

    recipe: Recipe
    mesh: Mesh | None = None

    Recipe: ClassVar[type] = Recipe
    batch_keys: ClassVar[tuple[str, ...]] = ("image", "tokens", "person")

    @classmethod
    def check(
        cls, recipe: Recipe, *, sampler: str, caption_buckets: Sequence[int]
    ) -> None:
        """Refuse to cut padding off that a released loss counts."""
        rules = {"efa": recipe.loss.efa_rule, "mlm": recipe.loss.mlm_rule}
        for name, rule in rules.items() if caption_buckets else ():
            if recipe.losses.get(name) and rule == "official":
                raise ValueError(
                    f"data.caption_buckets={tuple(caption_buckets)} cuts off padding, "
                    f"which the released {name} counts: wanted loss.{name}_rule=plus "
                    "or no buckets"
                )

    @classmethod
    def sized(cls, recipe: Recipe, model: models.ModelConfig) -> models.ModelConfig:
        """A head exists only where its loss has a weight.

        Raises:
            ValueError: A head that a loss needs has no layers.
        """
        if recipe.losses.get("mlm") and not model.irr_layers:
            raise ValueError(
                "config.model.irr_layers=0: wanted layers (4 in the paper) for the mlm "
                "loss, or config.losses.mlm=0"
            )
        return replace(
            model,
            classes=model.classes if recipe.losses.get("id") else 0,
            irr_layers=model.irr_layers if recipe.losses.get("mlm") else 0,
        )

    @classmethod
    def for_task(cls, recipe: Recipe, task: Task) -> "FMFAMethod":
        """FMFA on pairs that all have a person id, if a loss asks for it."""
        if recipe.needs_people:
            need_persons(task, "FMFA")
        return cls(task.model, recipe, mesh=task.mesh)

    def encode(self, params: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
        """Tokens, global features, identity logits and losses of masked words."""
        wanted, model = self.recipe.losses, models.bind(self.model, params)
        pixels, tokens, masked, labels = self._views(batch, key)
        image_tokens = model.encode_images(pixels)
        text_tokens = model.encode_texts(tokens)
        image = models.global_image(image_tokens)
        text = models.global_text(text_tokens, tokens)
        features, notes = {"image": image, "text": text}, {}
        if wanted.get("efa"):
            features |= {"image_tokens": image_tokens, "text_tokens": text_tokens}
        if wanted.get("id"):
            features["image_logits"] = model.identity_logits(image)
            features["text_logits"] = model.identity_logits(text)
        if wanted.get("mlm"):
            shared = self.recipe.mask.all_captions
            hidden = text_tokens if shared else model.encode_texts(masked)
            features["masked_losses"], notes = self._guess(
                model, hidden, image_tokens, tokens, labels
            )
        return features, notes

    def compare(
        self, features: Any, notes: Any, batch: Batch, state: State
    ) -> tuple[Float[Array, ""], Measured]:
        """The weighted sum of the terms."""
        del state
        f, options, person = features, self.recipe.loss, batch["person"]
        image, text, scale = f["image"], f["text"], options.scale
        terms = {
            "a_sdm": lambda: losses.sdm(
                image,
                text,
                person,
                scale=scale,
                weight=options.a_sdm_weight,
                alpha=options.a_sdm_alpha,
            ),
            "cmpm": lambda: losses.cmpm(image, text, person),
            "efa": lambda: self._efa(f, batch),
            "id": lambda: losses.identity_loss(
                f["image_logits"], f["text_logits"], person
            ),
            "itc": lambda: losses.itc(
                image,
                text,
                scale=scale,
                person=person if options.itc_positives == "person" else None,
            ),
            "mlm": lambda: losses.labelled_mean(
                f["masked_losses"], notes["masked_labels"]
            ),
            "sdm": lambda: losses.sdm(image, text, person, scale=scale),
            # A sum, as RDE has it: its pairs reach 0, and others lose no weight by it.
            "tal": lambda: losses.tal(
                image, text, person, tau=options.tal_tau, margin=options.tal_margin
            ).sum(),
        }
        total, values = weighted(terms, self.recipe.losses)
        if "dropped" in notes:
            values["mlm_dropped"] = notes["dropped"].sum().astype(jnp.float32)
        return total, Measured(values)

    def _efa(self, features: Any, batch: Batch) -> Float[Array, ""]:
        """Explicit alignment; what the rule does not ask for costs nothing."""
        # Hiding words changes nothing here: a mask or random word is content too.
        words = content_mask(batch["tokens"], start_id=self.model.vocab_size - 2)
        text, image = features["text_tokens"], features["image_tokens"]
        compare = functools.partial(
            alignment.best_cosines,
            operands=self.model.dtype,
            backend=self.model.platform,
        )
        # Each device compares its own rows with all groups. They travel once, and so
        # do their gradients; left to the compiler it would be once a block.
        compare = over_shards(
            compare, self.mesh, (P(BATCH_AXES), P(), P()), P(None, BATCH_AXES)
        )
        return losses.efa(
            text,
            image,
            rule=self.recipe.loss.efa_rule,
            person=batch["person"],
            text_mask=words,
            compare=compare,
        )

    def _guess(
        self,
        model: models.FMFA,
        hidden: Array,
        image_tokens: Array,
        tokens: Array,
        labels: Array,
    ) -> tuple[Float[Array, "b c"], dict[str, Array]]:
        """Losses of the masked words, and notes on them."""
        capacity = mask_capacity(self.model.context_length, self.recipe.mask.rate)
        capacity = min(capacity, tokens.shape[1])
        lengths = None
        if self.recipe.loss.mlm_rule == "plus":
            lengths = tokens.argmax(axis=1) + 1  # the end token has the largest id
        words = model.masked_words(hidden, image_tokens, labels, capacity, lengths)
        guess = functools.partial(
            losses.word_losses,
            lambda head, rows: head.wide(rows),
            backend=self.model.platform,
        )
        # As in `_efa`: the vocabulary and its gradient travel once.
        own = P(BATCH_AXES)
        guess = over_shards(guess, self.mesh, (P(), own, own), own)
        notes = {"masked_labels": words.labels, "dropped": words.dropped}
        return guess(model.vocabulary, words.hidden, words.labels), notes

    def _views(
        self, batch: Batch, key: jax.Array
    ) -> tuple[Array, Int[Array, "b l"], Int[Array, "b l"], Int[Array, "b l"]]:
        """Pixels, captions for all losses, masked captions and their labels."""
        k_image, k_text = jax.random.split(key)
        rows, tokens = batch["row"], batch["tokens"]
        pixels = augment_images(k_image, batch["image"], self.recipe.augment, rows=rows)
        if not self.recipe.losses.get("mlm"):
            return pixels, tokens, tokens, jnp.zeros_like(tokens)
        masked, labels = mask_tokens(
            k_text,
            tokens,
            rate=self.recipe.mask.rate,
            mask_id=self.model.vocab_size - 3,
            rows=rows,
            context_length=self.model.context_length,
        )
        shown = masked if self.recipe.mask.all_captions else tokens
        return pixels, shown, masked, labels
