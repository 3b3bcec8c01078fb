# SPDX-License-Identifier: Apache-2.0
"""The two methods behind one face: what the loop needs to know of each."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from data_pipeline.records import Split
from fmfa_jax.methods import fmfa as supervised
from fmfa_jax.methods import weak as association
from fmfa_jax.methods.weak import method as weak
from fmfa_jax.training import settings as build
from fmfa_jax.training.gradients import Loss, Measured
from fmfa_jax.training.session import Session

HostBatch = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Method:
    """What a run trains with.

    Attributes:
        loss: see `make_step`.
        keys: what of a batch the step may see.
        memory: makes the banks of a fresh run; None comes back where there are none.
        judge: (mined links of some steps) -> what the host adds to the log.
        check: (batch) -> nothing, or an error for a batch that the step cannot take.
        warning: (scalars of the first step) -> what the user should know, or None.
    """

    loss: Loss
    keys: tuple[str, ...]
    memory: Callable[[], Any]
    judge: Callable[[Sequence[Any]], dict[str, float]]
    check: Callable[[HostBatch], None]
    warning: Callable[[Mapping[str, float]], str | None]

    def pick(self, batch: HostBatch) -> dict[str, np.ndarray]:
        """The part of a batch that the step may see."""
        self.check(batch)
        return {name: batch[name] for name in self.keys}

    def scalars(self, measured: Measured, links: Sequence[Any]) -> dict[str, float]:
        """All numbers of a step, fetched from the device: this waits for the step.

        Args:
            measured: of the step.
            links: of all steps since the last call.
        """
        values, links = jax.device_get((measured.scalars, links))
        values = {name: float(value) for name, value in values.items()}
        return values | self.judge(links)


def make_method(session: Session, *, steps_per_epoch: int) -> Method:
    """The method that the config names, ready for `make_step`."""
    makers = {"fmfa": _supervised, "weak": _weak}
    return makers[session.config.method](session, steps_per_epoch)


def _supervised(session: Session, steps_per_epoch: int) -> Method:
    del steps_per_epoch
    unknown = int(np.sum(session.data.train.pair_labels < 0))
    if unknown:
        raise ValueError(
            f"FMFA learns from person ids, but {unknown} of the "
            f"{len(session.data.train.pairs)} training pairs of {session.data.name} "
            "have none; give them ids, or train from pairs alone with the preset :weak"
        )
    return Method(
        loss=supervised.make_loss(session.model, build.recipe(session.config)),
        keys=("image", "tokens", "person"),
        memory=lambda: None,
        judge=lambda links: {},
        check=lambda batch: None,
        warning=lambda scalars: None,
    )


def _weak(session: Session, steps_per_epoch: int) -> Method:
    config, split = session.config, session.data.train
    if config.data.sampler != "shuffle":
        raise ValueError(
            f"the weak method knows no identities to sample: wanted data.sampler="
            f"shuffle, got {config.data.sampler!r}"
        )
    pairs = len(split.pairs)
    association.check_batch_size(config.train.batch_size, pairs=pairs)
    recipe = build.weak_recipe(config, first_epoch=steps_per_epoch)
    return Method(
        loss=weak.make_loss(session.model, recipe, session.mesh),
        keys=weak.BATCH_KEYS,
        memory=lambda: weak.make_memory(
            session.model, recipe, session.mesh, pairs=pairs
        ),
        judge=lambda links: mined_quality(links, split),
        check=lambda batch: association.check_indices(batch["pair"], pairs=pairs),
        warning=lambda scalars: association.start_warning(
            scalars["linked_share"], threshold=recipe.options.threshold
        ),
    )


def mined_quality(links: Sequence[Any], split: Split) -> dict[str, float]:
    """Precision and recall of the links of some steps, where ids happen to be known.

    Computed here, outside the step, because ids must never reach it.
    """
    persons = split.pair_persons
    if (persons < 0).all():
        return {}
    steps = [
        association.mined_precision(x["slot"], x["valid"], x["index"], persons)
        for x in links
    ]
    quality = association.MinedQuality(
        links=sum(step.links for step in steps),
        correct=sum(step.correct for step in steps),
        reachable=sum(step.reachable for step in steps),
    )
    found = {"mined_precision": quality.precision, "mined_recall": quality.recall}
    return {name: value for name, value in found.items() if not math.isnan(value)}
