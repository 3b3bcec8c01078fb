# SPDX-License-Identifier: Apache-2.0
"""The parts of a model, in one table: every other file derives from it.

To add a head: write its module in `heads`, add its row here, and name its tensors in
`weights/rules.py` where other code stores them, too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flax import nnx

from fmfa_jax.models.config import ModelConfig
from fmfa_jax.models.heads import InteractionEncoder, identity_head
from fmfa_jax.models.selection import TokenSelection
from fmfa_jax.models.towers import ImageTower, TextTower


@dataclass(frozen=True)
class Part:
    """One part of a model: a tower, which every model has, or an optional head.

    Attributes:
        name: Attribute of the model, and first piece of its parameters' paths.
        build: Makes the module from a config.
        blocks: Config field with the number of its transformer blocks, "" if it has
            none.
        switch: Config field that is 0 in models without this head, "" for a tower.
        sized_by: Parameter whose last axis is the value of `switch`; "" if `blocks`
            is the switch.
        fast: Path prefixes that IRRA's optimizer groups treat as heads: weights and
            biases learn at `head_factor` times the rate.
        interaction: Path prefixes that these groups treat as cross-modal interaction:
            weights learn at `head_factor` times the rate, biases at `bias_factor`.
        in_features: Whether features need it, after training too.
    """

    name: str
    build: Callable[[ModelConfig], nnx.Module]
    blocks: str = ""
    switch: str = ""
    sized_by: str = ""
    fast: tuple[str, ...] = ()
    interaction: tuple[str, ...] = ()
    in_features: bool = False

    def is_in(self, config: ModelConfig) -> bool:
        """Return whether models of this config have the part."""
        return not self.switch or getattr(config, self.switch) > 0

    def depth(self, config: ModelConfig) -> int:
        """Return the number of its transformer blocks."""
        return getattr(config, self.blocks) if self.blocks else 0


# Parameters are drawn in this order, heads last: equal seeds give equal towers
# whichever heads a model has.
PARTS = (
    Part("image_tower", ImageTower, blocks="image_layers", in_features=True),
    Part("text_tower", TextTower, blocks="text_layers", in_features=True),
    Part(
        "irr",
        InteractionEncoder,
        blocks="irr_layers",
        switch="irr_layers",
        fast=("irr/head",),
        interaction=("irr/cross_attention", "irr/blocks"),
    ),
    Part(
        "classifier",
        identity_head,
        switch="classes",
        sized_by="classifier/kernel",
        fast=("classifier",),
    ),
    Part(
        "tse",
        TokenSelection,
        switch="tse_width",
        sized_by="tse/image/skip/kernel",
        in_features=True,
    ),
)

TOWERS = tuple(part.name for part in PARTS if not part.switch)
HEADS = tuple(prefix for part in PARTS for prefix in part.fast)
INTERACTION = tuple(prefix for part in PARTS for prefix in part.interaction)


def towers_only(config: ModelConfig) -> ModelConfig:
    """Return the config of the same towers without any head."""
    return replace(config, **{part.switch: 0 for part in PARTS if part.switch})


def without_training_heads(config: ModelConfig) -> ModelConfig:
    """Return the config of the towers and those heads that features need.

    Its loops are rolled up: only a gradient gains by longer programs.
    """
    heads = [part for part in PARTS if part.switch and not part.in_features]
    return replace(config, scan_unroll=1, **{part.switch: 0 for part in heads})


def provided(config: ModelConfig, params: Mapping[str, Any]) -> ModelConfig:
    """Return the config without the heads that `params` do not hold."""
    absent = [part for part in PARTS if part.switch and part.name not in params]
    return replace(config, **{part.switch: 0 for part in absent})


def params_of(config: ModelConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the parts that a config has."""
    return {part.name: params[part.name] for part in PARTS if part.is_in(config)}
