# SPDX-License-Identifier: Apache-2.0
"""Adam with coupled decay, parameter groups, and the schedule."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import optax

from fmfa_jax.machines.trees import path_name
from fmfa_jax.models import HEADS, INTERACTION
from fmfa_jax.options import Above, Between, OneOf, Options

GROUPS = ("uniform", "irra")
EVERY = ("epoch", "step")
BELOW_ONE = 0.9999999  # at 1 the bias correction divides by 0
# Adam divides the gradient by its own size: a step moves a parameter by the rate times
# a small number, so with these, finite parameters stay finite for 10^6 steps and more.
LARGEST_RATE, LARGEST_FACTOR = 1e20, 1e10

Group = tuple[float, bool]
"""A parameter's learning-rate factor, and whether it decays."""


@dataclass(frozen=True, kw_only=True)
class AdamOptions(Options, section="optimizer"):
    """Adam whose decay is added to the gradient (torch.optim.Adam, not AdamW).

    Attributes:
        lr: Base learning rate.
        b1: Decay of the first moment.
        b2: Decay of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Coupled L2.
        groups: "uniform" (FMFA's released code: one rate, everything decays) or "irra"
            (see `group`).
        head_factor: See `group`.
        bias_factor: See `group`.
        clip_norm: Clip the global norm of the gradient first; 0: do not.
    """

    lr: Annotated[float, Above(0, LARGEST_RATE)] = 1e-5
    b1: Annotated[float, Between(0, BELOW_ONE)] = 0.9
    b2: Annotated[float, Between(0, BELOW_ONE)] = 0.999
    eps: Annotated[float, Above(0)] = 1e-3
    weight_decay: Annotated[float, Between(0)] = 4e-5
    groups: Annotated[str, OneOf(GROUPS)] = "uniform"
    head_factor: Annotated[float, Between(0, LARGEST_FACTOR)] = 5.0
    bias_factor: Annotated[float, Between(0, LARGEST_FACTOR)] = 2.0
    clip_norm: Annotated[float, Between(0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions(Options, section="schedule"):
    """Linear warm-up, then cosine.

    Attributes:
        warmup_epochs: Length of the warm-up.
        warmup_factor: Factor of the first epoch.
        end_factor: Factor that the cosine ends at.
        every: "epoch" holds the rate constant within an epoch, as officially; "step"
            moves it at every step.
    """

    warmup_epochs: Annotated[int | float, Between(0)] = 5
    warmup_factor: Annotated[float, Between(0, 1)] = 0.1
    end_factor: Annotated[float, Between(0, 1)] = 0.0
    every: Annotated[str, OneOf(EVERY)] = "epoch"


def group(name: str, *, head_factor: float, bias_factor: float) -> Group:
    """The group of one parameter by IRRA's rules.

    The later rule wins, as in the official code, which matches "cross", then "bias",
    then the heads: a bias in the interaction encoder has bias_factor, a bias of a head
    has head_factor, and no bias decays.
    """
    bias = name.endswith("bias")
    factor = head_factor if name.startswith(INTERACTION) else 1.0
    factor = bias_factor if bias else factor
    factor = head_factor if name.startswith(HEADS) else factor
    return factor, not bias


def make_schedule(
    lr: float,
    options: ScheduleOptions,
    *,
    epochs: int,
    steps_per_epoch: int,
) -> Callable[[Any], Any]:
    """The learning rate as a function of the number of steps taken.

    Args:
        lr: Base learning rate.
        options: Shape of the schedule.
        epochs: Length of the whole schedule.
        steps_per_epoch: Optimiser steps in an epoch.

    Raises:
        ValueError: The warm-up is not shorter than the schedule.

    Source: IRRA's LRSchedulerWithWarmup; with x = epoch - 1 the factors of the first
    epochs are .1 .28 .46 .64 .82, then .5 (1 + cos(pi (x - 5) / (E - 5))).
    """
    warmup = options.warmup_epochs
    if warmup >= epochs:
        raise ValueError(
            f"schedule.warmup_epochs={warmup} must be less than train.epochs={epochs}"
        )
    by_epoch = optax.join_schedules(
        [
            optax.linear_schedule(options.warmup_factor * lr, lr, warmup),
            optax.cosine_decay_schedule(lr, epochs - warmup, options.end_factor),
        ],
        [warmup],
    )
    if options.every == "epoch":
        return lambda step: by_epoch(step // steps_per_epoch)
    return lambda step: by_epoch(step / steps_per_epoch)


def make_optimizer(
    schedule: Callable[[Any], Any],
    options: AdamOptions,
    *,
    own_group: Callable[[str], Group | None] = lambda path: None,
) -> optax.GradientTransformation:
    """Adam with the groups that the options and the method ask for.

    Args:
        schedule: Step -> learning rate.
        options: All but the rate.
        own_group: The method's groups, see `Method.parameter_group`.
    """

    def settings(path: tuple) -> Group:
        """Return factor and decay of a parameter."""
        name = path_name(path)
        if (own := own_group(name)) is not None:
            return own
        if options.groups == "uniform":
            return 1.0, True
        return group(
            name, head_factor=options.head_factor, bias_factor=options.bias_factor
        )

    def scale(updates: Any, params: Any) -> Any:
        """Scale each update by its parameter's factor."""
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u * settings(path)[0], updates
        )

    def decays(params: Any) -> Any:
        """Tell which parameters decay."""
        return jax.tree_util.tree_map_with_path(
            lambda path, _: settings(path)[1], params
        )

    clip = optax.clip_by_global_norm(options.clip_norm)
    return optax.chain(
        clip if options.clip_norm else optax.identity(),
        optax.add_decayed_weights(options.weight_decay, mask=decays),
        optax.scale_by_adam(b1=options.b1, b2=options.b2, eps=options.eps),
        optax.stateless(scale),
        optax.scale_by_learning_rate(schedule),
    )
