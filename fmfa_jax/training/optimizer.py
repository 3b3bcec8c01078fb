# SPDX-License-Identifier: Apache-2.0
"""Adam with coupled decay, the two kinds of parameter groups, and the schedule."""

from collections.abc import Callable
from typing import Any

import jax
import optax

# Groups of IRRA, as its code matches names: "cross", then "bias", then the heads.
INTERACTION = ("irr/cross_attention", "irr/blocks")
HEADS = ("classifier", "irr/head")


def path_name(path: tuple) -> str:
    """A pytree path as text: "image_tower/blocks/ln_1/bias"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def group(name: str, *, head_factor: float, bias_factor: float) -> tuple[float, bool]:
    """Learning-rate factor and whether decay applies, for one parameter (IRRA).

    The later rule wins, as in the official code: a bias inside the interaction encoder
    has bias_factor, a bias of a head has head_factor, and no bias decays.
    """
    bias = name.endswith("bias")
    factor = head_factor if name.startswith(INTERACTION) else 1.0
    factor = bias_factor if bias else factor
    factor = head_factor if name.startswith(HEADS) else factor
    return factor, not bias


def make_schedule(
    lr: float,
    *,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int | float = 5,
    warmup_factor: float = 0.1,
    end_factor: float = 0.0,
    every: str = "epoch",
) -> Callable[[Any], Any]:
    """Linear warm-up, then cosine, as a function of the number of steps taken.

    Args:
        lr: the base learning rate.
        epochs: length of the whole schedule.
        steps_per_epoch: optimiser steps in an epoch.
        warmup_epochs: length of the warm-up.
        warmup_factor: factor of the first epoch.
        end_factor: factor that the cosine ends at.
        every: "epoch" holds the rate constant within an epoch, as officially; "step"
            moves it at every step.

    Source: IRRA's LRSchedulerWithWarmup; with x = epoch - 1 the factors of the first
    epochs are .1 .28 .46 .64 .82, then .5 (1 + cos(pi (x - 5) / (E - 5))).
    """
    if every not in ("epoch", "step"):
        raise ValueError(f"wanted schedule.every among epoch, step; got {every!r}")
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(
            f"schedule.warmup_epochs={warmup_epochs} must be at least 0 and less than "
            f"train.epochs={epochs}"
        )
    by_epoch = optax.join_schedules(
        [
            optax.linear_schedule(warmup_factor * lr, lr, warmup_epochs),
            optax.cosine_decay_schedule(lr, epochs - warmup_epochs, end_factor),
        ],
        [warmup_epochs],
    )
    if every == "epoch":
        return lambda step: by_epoch(step // steps_per_epoch)
    return lambda step: by_epoch(step / steps_per_epoch)


def make_optimizer(
    schedule: Callable[[Any], Any],
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-3,
    weight_decay: float = 4e-5,
    groups: str = "uniform",
    head_factor: float = 5.0,
    bias_factor: float = 2.0,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Adam whose decay is added to the gradient (torch.optim.Adam, not AdamW).

    Args:
        schedule: step -> learning rate.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: coupled L2.
        groups: "uniform" (FMFA's released code: one rate, all decay) | "irra".
        head_factor: see `group`.
        bias_factor: see `group`.
        clip_norm: clip the global gradient norm first; 0 does not.
    """
    if groups not in ("uniform", "irra"):
        raise ValueError(f"wanted optimizer.groups among uniform, irra; got {groups!r}")

    def settings(path: tuple) -> tuple[float, bool]:
        if groups == "uniform":
            return 1.0, True
        name = path_name(path)
        return group(name, head_factor=head_factor, bias_factor=bias_factor)

    def scale(updates: Any, params: Any) -> Any:
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u * settings(path)[0], updates
        )

    def decays(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: settings(path)[1], params
        )

    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.add_decayed_weights(weight_decay, mask=decays),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.stateless(scale),
        optax.scale_by_learning_rate(schedule),
    )
