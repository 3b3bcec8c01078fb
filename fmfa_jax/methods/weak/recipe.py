# SPDX-License-Identifier: Apache-2.0
"""What the weak method may be told: its sections of the config."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fmfa_jax.losses.links import ROWS, TARGETS
from fmfa_jax.losses.matching import REDUCTIONS
from fmfa_jax.methods.method import check_weights
from fmfa_jax.methods.views import Augmentation
from fmfa_jax.methods.weak import memory, mining
from fmfa_jax.options import Above, Between, OneOf, Options

TERMS = ("itc", "local", "global", "consistency")
SAME_IMAGE = ("unknown", "linked")
# How position 1 of the augmented caption is hidden -> rule of `mask_tokens`.
MASK_FIRST = {"always": "mask", "never": "mask_free"}


@dataclass(frozen=True, kw_only=True)
class Temperature(Options, section="loss"):
    """The one option that the weak method shares with FMFA: 1 / tau of all logits."""

    scale: Annotated[float, Above(0)] = 50.0


@dataclass(frozen=True, kw_only=True)
class Masking(Options, section="mask"):
    """Share of the ordinary tokens that are hidden in the augmented view."""

    rate: Annotated[float, Between(0, 1)] = 0.5


@dataclass(frozen=True, kw_only=True)
class WeakOptions(Options, section="weak"):
    """How the losses compute; the defaults are the official code's.

    Attributes:
        threshold: Cosine above which two pairs are linked.
        strength: Local target logit of a linked pair (lambda).
        links: Rows mined for each anchor (k).
        rows: Anchors of the global loss, see `links.global_loss`.
        exclude: What mining leaves out, see `mining.mine`.
        targets: Mined rows as targets, see `links.group_targets`.
        same_image: Captions of one image, "unknown" or "linked".
        itc_reduction: The two directions of itc, see `matching.itc`.
        rate: Weight of the NEW feature in the memory's update (11).
        memory_dtype: Storage of the memory's rows.
        mask_first: Position 1 of the augmented caption: "always" hidden, as in the
            official code, or "never" more than others.
    """

    threshold: Annotated[float, Between(-1, 2)] = 0.7
    strength: Annotated[float, Between(-100, 100)] = 0.1
    links: Annotated[int, Between(1, 1000)] = 3
    rows: Annotated[str, OneOf(ROWS)] = "all"
    exclude: Annotated[str, OneOf(mining.EXCLUDES)] = "rank0"
    targets: Annotated[str, OneOf(TARGETS)] = "owner"
    same_image: Annotated[str, OneOf(SAME_IMAGE)] = "unknown"
    itc_reduction: Annotated[str, OneOf(REDUCTIONS)] = "mean"
    rate: Annotated[float, Between(0, 1)] = 0.9
    memory_dtype: Annotated[str, OneOf(memory.DTYPES)] = "float32"
    mask_first: Annotated[str, OneOf(tuple(MASK_FIRST))] = "always"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the weak method computes: weights of its terms, options, and the view."""

    losses: Mapping[str, Any]
    loss: Temperature = field(default_factory=Temperature)
    weak: WeakOptions = field(default_factory=WeakOptions)
    mask: Masking = field(default_factory=Masking)
    augment: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        check_weights(self.losses, TERMS)
