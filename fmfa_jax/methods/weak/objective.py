# SPDX-License-Identifier: Apache-2.0
"""The weak method's objective (22): named terms, weighted and added.

No function of this package takes a person id: the method learns from pairs alone.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from fmfa_jax.losses.groups import global_loss
from fmfa_jax.losses.links import (
    linked_share,
    local_loss,
    local_relations,
)
from fmfa_jax.losses.matching import itc
from fmfa_jax.methods.weak.memory import Bank, take_rows
from fmfa_jax.methods.weak.mining import Mined, mine

TERMS = ("itc", "local", "global", "consistency")

_CHOICES = {
    "rows": ("all", "batch"),
    "exclude": ("rank0", "self"),
    "targets": ("owner", "union"),
    "same_image": ("unknown", "linked"),
    "itc_reduction": ("mean", "sum"),
}


@dataclass(frozen=True)
class WeakOptions:
    """How the losses compute; as it stands, what the official code computes.

    Attributes:
        scale: 1 / tau of all logits.
        threshold: cosine above which two pairs are linked.
        strength: local target logit of a linked pair (lambda).
        links: rows mined for each anchor (k).
        rows: anchors of the global loss, "all" | "batch".
        exclude: what mining leaves out, "rank0" | "self".
        targets: mined rows as targets, "owner" | "union", see `group_targets`.
        same_image: captions of one image, "unknown" | "linked" (needs image_id).
        itc_reduction: the two directions of itc, "mean" | "sum".
        block: rows of the memory compared at once, None: by the backend; never
            changes a result.
    """

    scale: float = 50.0
    threshold: float = 0.7
    strength: float = 0.1
    links: int = 3
    rows: str = "all"
    exclude: str = "rank0"
    targets: str = "owner"
    same_image: str = "unknown"
    itc_reduction: str = "mean"
    block: int | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name}: wanted one of {choices}, got {value!r}")


class WeakInputs(NamedTuple):
    """Features of one global batch. There is no person id, on purpose.

    Attributes:
        image: image features of the clean view, any scale and float type.
        text: text features of the clean view.
        index: training pair of each sample, the row in the memory.
        image_view: image features of the augmented view; None without consistency.
        text_view: text features of the augmented view.
        image_id: the image each caption describes; None: unknown.
    """

    image: Float[Array, "b d"]
    text: Float[Array, "b d"]
    index: Int[Array, " b"]
    image_view: Float[Array, "b d"] | None = None
    text_view: Float[Array, "b d"] | None = None
    image_id: Int[Array, " b"] | None = None


class WeakResult(NamedTuple):
    """What one step of the weak method yields.

    Attributes:
        losses: the unweighted terms whose weight is not 0, and "total", their weighted
            sum. "global" is 0 while the memory is not ready.
        measurements: "linked_share", see `linked_share`, and, with the global term,
            "links_per_anchor", the valid mined rows of an anchor on average.
        mined: the mined rows, for precision and recall on the host; None without the
            global term.
    """

    losses: dict[str, Float[Array, ""]]
    measurements: dict[str, Float[Array, ""]]
    mined: Mined | None


def weak_objective(
    inputs: WeakInputs,
    bank: Bank | None,
    weights: Mapping[str, float],
    *,
    ready: Bool[Array, ""] | bool,
    options: WeakOptions | None = None,
    mesh: Mesh | None = None,
) -> WeakResult:
    """Dual-granularity association (22) of one batch against the OLD memory.

    Args:
        inputs: the features.
        bank: the memory before this step's update; None only without "global".
        weights: name -> weight over itc, local, global, consistency; a term that is
            absent or 0 is not computed.
        ready: False in the first epoch, which only writes the memory. It may change
            between steps without a new compilation.
        options: how the losses compute.
        mesh: devices that share the memory over the axis "data"; None: one device.

    Raises:
        ValueError: an unknown term, or an input that an asked-for term needs.
    """
    options = options or WeakOptions()
    wanted = _wanted_terms(weights)
    image_id = _image_id(inputs, options)
    losses, mined = {}, None
    relations = local_relations(
        inputs.image, inputs.text, threshold=options.threshold, image_id=image_id
    )
    measurements = {"linked_share": linked_share(relations)}
    if "itc" in wanted:
        losses["itc"] = itc(
            inputs.image,
            inputs.text,
            scale=options.scale,
            reduction=options.itc_reduction,
        )
    if "local" in wanted:
        losses["local"] = _local(inputs.image, inputs.text, image_id, options)
    if "global" in wanted:
        losses["global"], mined = _global(inputs, bank, image_id, ready, options, mesh)
        measurements["links_per_anchor"] = jnp.mean(
            jnp.sum(mined.valid, axis=1, dtype=jnp.float32)
        )
    if "consistency" in wanted:
        if inputs.image_view is None or inputs.text_view is None:
            raise ValueError("consistency needs image_view and text_view, got None")
        losses["consistency"] = _local(
            inputs.image_view, inputs.text_view, image_id, options
        )
    losses["total"] = sum(
        (weights[name] * losses[name] for name in wanted), jnp.float32(0.0)
    )
    return WeakResult(losses=losses, measurements=measurements, mined=mined)


def _local(
    image: Array, text: Array, image_id: Array | None, options: WeakOptions
) -> Float[Array, ""]:
    """The local loss of one view under `options`."""
    return local_loss(
        image,
        text,
        scale=options.scale,
        threshold=options.threshold,
        strength=options.strength,
        image_id=image_id,
    )


def _global(
    inputs: WeakInputs,
    bank: Bank | None,
    image_id: Array | None,
    ready: Bool[Array, ""] | bool,
    options: WeakOptions,
    mesh: Mesh | None,
) -> tuple[Float[Array, ""], Mined]:
    """The global loss and the mined rows; nothing is mined before `ready`."""
    if bank is None:
        raise ValueError("the term 'global' needs a memory bank, got None")
    found = mine(
        bank,
        inputs.image,
        inputs.index,
        links=options.links,
        threshold=options.threshold,
        exclude=options.exclude,
        block=options.block,
        mesh=mesh,
    )
    mined = Mined(found.similarity, found.slot, found.valid & ready)
    value = global_loss(
        inputs.image,
        inputs.text,
        mined,
        *take_rows(bank, mined.slot, mesh=mesh),
        scale=options.scale,
        rows=options.rows,
        targets=options.targets,
        index=inputs.index,
        image_id=image_id,
    )
    return jnp.where(ready, value, 0.0), mined


def _wanted_terms(weights: Mapping[str, float]) -> tuple[str, ...]:
    """The names with a weight, in the order of TERMS; unknown names are an error."""
    for name in weights:
        if name not in TERMS:
            near = difflib.get_close_matches(name, TERMS, n=2)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"unknown loss {name!r}: wanted some of {TERMS}{hint}")
    return tuple(name for name in TERMS if weights.get(name, 0.0) != 0.0)


def _image_id(inputs: WeakInputs, options: WeakOptions) -> Array | None:
    """The image ids where the options allow to use them."""
    if options.same_image == "unknown":
        return None
    if inputs.image_id is None:
        raise ValueError("same_image='linked' needs image_id in the inputs, got None")
    return inputs.image_id
