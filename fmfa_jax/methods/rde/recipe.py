# SPDX-License-Identifier: Apache-2.0
"""What RDE may be told: its sections of the config."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fmfa_jax.methods.method import check_weights
from fmfa_jax.methods.rde.division import FITTINGS
from fmfa_jax.methods.views import Augmentation
from fmfa_jax.options import Above, Between, OneOf, Options

TERMS = ("bge", "tse", "id")
LOSSES = ("tal", "trl", "itc", "sdm")
BATCH_NORMS = ("frozen", "batch")
DIVISIONS = ("mixture", "none")


@dataclass(frozen=True, kw_only=True)
class Temperature(Options, section="loss"):
    """1 / temperature of itc and sdm."""

    scale: Annotated[float, Above(0)] = 50.0


@dataclass(frozen=True, kw_only=True)
class BaseRate(Options, section="optimizer"):
    """The rate that the towers learn at."""

    lr: Annotated[float, Above(0)] = 1e-5


@dataclass(frozen=True, kw_only=True)
class RDEOptions(Options, section="rde"):
    """How the embeddings are compared; the defaults are the published runs'.

    Attributes:
        loss: Of each pair, on both embeddings: "tal" or "trl", summed over the pairs
            that are kept, or "itc" or "sdm", averaged over them.
        tau: Temperature of tal and trl.
        margin: Of tal and trl.
        width: Of the token selection embedding.
        ratio: Share of patches and words that it selects.
        batch_norm: What it normalises with in training: "frozen", the statistics that
            it began with, as in the published runs; "batch", those of the global
            batch, as in the released code since, which keeps their running mean.
        lr: Rate of its head, whatever that of the towers.
        division: "mixture": two mixtures over the losses decide before each epoch which
            pairs are kept (CCD); "none": all are.
        mixture: How closely they are fitted, see `division.FITTINGS`.
        mask: Probability that a word is hidden, see `views.edit_tokens`.
        replace: That it becomes another.
        remove: That it is left out.
    """

    loss: Annotated[str, OneOf(LOSSES)] = "tal"
    tau: Annotated[float, Above(0, 1)] = 0.015
    margin: Annotated[float, Between(0, 4)] = 0.1
    width: Annotated[int, Between(2, 2**16)] = 1024
    ratio: Annotated[float, Above(0, 1)] = 0.3
    batch_norm: Annotated[str, OneOf(BATCH_NORMS)] = "frozen"
    lr: Annotated[float, Above(0)] = 1e-3
    division: Annotated[str, OneOf(DIVISIONS)] = "mixture"
    mixture: Annotated[str, OneOf(tuple(FITTINGS))] = "loose"
    mask: Annotated[float, Between(0, 1)] = 0.12
    replace: Annotated[float, Between(0, 1)] = 0.04
    remove: Annotated[float, Between(0, 1)] = 0.04

    def __post_init__(self) -> None:
        super().__post_init__()
        edited = self.mask + self.replace + self.remove
        if edited > 1:
            raise ValueError(
                "config.rde.mask + replace + remove: wanted shares of the words that "
                f"sum to at most 1, got {edited:g}"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What RDE computes: weights of its terms, options, and the views."""

    losses: Mapping[str, Any]
    loss: Temperature = field(default_factory=Temperature)
    rde: RDEOptions = field(default_factory=RDEOptions)
    optimizer: BaseRate = field(default_factory=BaseRate)
    augment: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        check_weights(self.losses, TERMS)
