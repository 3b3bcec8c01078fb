# SPDX-License-Identifier: Apache-2.0
"""Losses that link pairs without identity labels: within a batch, and to mined rows.

Source: Dual-Granularity Cross-Modal Identity Association (arXiv 2507.06744); equation
numbers are that paper's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fmfa_jax.losses.arithmetic import cosines, wide

EPSILON = 1e-6  # added to the target before its logarithm, as in the official code
ROWS = ("all", "batch")
TARGETS = ("owner", "union")


def local_relations(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    *,
    threshold: float = 0.7,
    image_id: Int[Array, " b"] | None = None,
) -> Bool[Array, "b b"]:
    """M (3)-(5): pairs whose images AND texts are both closer than `threshold`.

    Symmetric, with a true diagonal. With `image_id`, captions of one image are linked
    whatever their cosines: they are known to show the same person. No gradient flows.
    """
    image, text = jax.lax.stop_gradient((image, text))
    linked = cosines(image, image) > threshold
    linked &= cosines(text, text) > threshold
    if image_id is not None:
        linked |= image_id[:, None] == image_id[None, :]
    return linked | jnp.eye(len(image), dtype=bool)


def linked_share(relations: Bool[Array, "b b"]) -> Float[Array, ""]:
    """Share in [0, 1] of the pairs (i, j), i != j, that are linked.

    Near 1 the features are almost collinear, as untrained towers make them, and
    thresholds mean nothing.
    """
    size = len(relations)
    return (jnp.sum(relations) - size) / jnp.float32(max(size * (size - 1), 1))


def reverse_kl(
    logits: Float[Array, "r c"],
    targets: Float[Array, "r c"],
    *,
    columns: Bool[Array, " c"] | None = None,
) -> Float[Array, " r"]:
    """KL(p || q) of each row, p = softmax(logits), q = softmax(targets) + EPSILON.

    Args:
        logits: Similarity logits, which carry the gradient.
        targets: Target logits, -inf where there is no probability. Constant.
        columns: Live columns; a dead one has p = 0 and changes neither value nor
            gradient. At least one must be live.
    """
    if columns is not None:
        logits = jnp.where(columns, logits, -jnp.inf)
        targets = jnp.where(columns, targets, -jnp.inf)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    log_q = jnp.log(jax.nn.softmax(jax.lax.stop_gradient(targets), axis=-1) + EPSILON)
    # A dead column has log p = -inf, and 0 * inf must appear nowhere.
    finite = log_p if columns is None else jnp.where(columns, log_p, 0.0)
    return jnp.sum(jnp.exp(log_p) * (finite - log_q), axis=-1)


def local_targets(
    relations: Bool[Array, "b b"], *, strength: float = 0.1
) -> Float[Array, "b b"]:
    """Target logits (6): 1 for the own pair, `strength` for a linked one, else -inf."""
    own = jnp.eye(len(relations), dtype=bool)
    links = jnp.where(relations, jnp.float32(strength), -jnp.inf)
    return jnp.where(own, jnp.float32(1.0), links)


def local_loss(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    *,
    scale: float = 50.0,
    threshold: float = 0.7,
    strength: float = 0.1,
    image_id: Int[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Local association (3)-(10), image to text plus text to image.

    On augmented views of the same pairs this is the consistency loss (19)-(21).

    Args:
        image: Image features of any length.
        text: Text features of any length.
        scale: 1 / tau of the logits.
        threshold: Cosine above which two pairs are linked.
        strength: Target logit of a linked pair (lambda).
        image_id: See `local_relations`.
    """
    relations = local_relations(image, text, threshold=threshold, image_id=image_id)
    targets = local_targets(relations, strength=strength)
    logits = scale * cosines(image, text)
    return jnp.mean(reverse_kl(logits, targets) + reverse_kl(logits.T, targets))


class Mined(NamedTuple):
    """Rows of the memory linked to each anchor, nearest first.

    Attributes:
        similarity: Cosine of the anchor's image and the row's image; -inf: no row.
        slot: Row number, which is the index of the training pair.
        valid: Whether the row counts as the same person.
    """

    similarity: Float[Array, "b k"]
    slot: Int[Array, "b k"]
    valid: Bool[Array, "b k"]


def confidence(mined: Mined) -> Float[Array, "b k"]:
    """Target weights (14) of the mined rows: the less similar, the heavier.

    w = 1 - exp(s) / (e + sum of exp(s) over the anchor's valid rows); 0 where invalid.
    """
    similarity = jnp.where(mined.valid, mined.similarity, -jnp.inf)
    mass = jnp.exp(similarity)
    total = jnp.e + jnp.sum(mass, axis=1, keepdims=True)
    return jnp.where(mined.valid, 1.0 - mass / total, 0.0)


def global_loss(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    mined: Mined,
    mined_image: Float[Array, "b k d"],
    mined_text: Float[Array, "b k d"],
    *,
    scale: float = 50.0,
    rows: str = "all",
    targets: str = "owner",
    index: Int[Array, " b"] | None = None,
    image_id: Int[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Global association (11)-(18), text to image plus image to text.

    The columns are the batch, then every mined row: the image mined for an anchor is a
    positive of its text, and the text mined for it a positive of its image.

    Args:
        image: Image features; only these and `text` carry a gradient.
        text: Text features.
        mined: Rows linked to each anchor.
        mined_image: Image features of these rows.
        mined_text: Text features of these rows.
        scale: 1 / tau of the logits.
        rows: Anchors that the mean is over: "all", batch and mined rows (the official
            code), or "batch" (the paper).
        targets: See `group_targets`.
        index: Row of each pair; needed for targets="union".
        image_id: See `group_targets`.
    """
    size, links = mined.slot.shape
    group = group_targets(mined, targets=targets, index=index, image_id=image_id)
    live = jnp.concatenate([jnp.ones(size, bool), mined.valid.reshape(-1)])
    images = _with_mined(image, mined_image)
    texts = _with_mined(text, mined_text)
    if rows == "all":
        owner = jnp.concatenate([jnp.arange(size), jnp.repeat(jnp.arange(size), links)])
        # A mined row's target is uniform over its owner's group.
        members = jnp.where(jnp.isfinite(group), 1.0, -jnp.inf)[owner[size:]]
        wanted, weight = jnp.concatenate([group, members]), live
    elif rows == "batch":
        wanted, weight = group, live[:size]
    else:
        raise ValueError(f"rows: wanted one of {ROWS}, got {rows!r}")
    anchors = len(wanted)
    loss = reverse_kl(
        scale * cosines(texts[:anchors], images), wanted, columns=live
    ) + reverse_kl(scale * cosines(images[:anchors], texts), wanted, columns=live)
    return jnp.sum(jnp.where(weight, loss, 0.0)) / jnp.sum(weight)


def group_targets(
    mined: Mined,
    *,
    targets: str = "owner",
    index: Int[Array, " b"] | None = None,
    image_id: Int[Array, " b"] | None = None,
) -> Float[Array, "b c"]:
    """Target logits (13) of each anchor over the batch and all mined rows.

    1 for the anchor's own pair, the confidence for rows mined for it, else -inf.

    Args:
        mined: Rows linked to each anchor.
        targets: "owner": a mined row belongs to the anchor that mined it and is a
            negative of all others (the official code). "union": columns that hold the
            same training pair belong together, so a batch mate whose row was mined is
            a positive with the mined weight, a row mined by two anchors is a positive
            of both, and an anchor's own row mined by another counts as its own pair.
        index: Row of each pair; needed for "union".
        image_id: Image of each pair; batch mates that share it get 1, like the own
            pair. None: unknown.
    """
    size, links = mined.slot.shape
    weight = jnp.where(mined.valid, confidence(mined), -jnp.inf)
    same = jnp.eye(size, dtype=bool)
    if image_id is not None:
        same |= image_id[:, None] == image_id[None, :]
    if targets == "union":
        if index is None:
            raise ValueError("targets='union' needs the index of each pair, got None")
        return _union_targets(mined, weight, same, index)
    if targets != "owner":
        raise ValueError(f"targets: wanted one of {TARGETS}, got {targets!r}")
    mates = jnp.where(same, 1.0, -jnp.inf)
    own = jnp.repeat(jnp.eye(size, dtype=bool), links, axis=1)
    return jnp.concatenate(
        [mates, jnp.where(own, weight.reshape(1, -1), -jnp.inf)], axis=1
    )


def _union_targets(
    mined: Mined, weight: Array, same: Bool[Array, "b b"], index: Int[Array, " b"]
) -> Float[Array, "b c"]:
    """Targets by training pair: columns that hold the same pair share a target."""
    slots = jnp.concatenate([index, mined.slot.reshape(-1)])
    own = jnp.any(same[:, :, None] & (index[None, :, None] == slots), axis=1)
    # [b, c, k]: is column c the anchor's k-th mined row? Invalid ones weigh -inf.
    is_mined = slots[None, :, None] == mined.slot[:, None, :]
    mined_weight = jnp.max(jnp.where(is_mined, weight[:, None], -jnp.inf), axis=2)
    return jnp.where(own, 1.0, mined_weight)


def _with_mined(
    features: Float[Array, "b d"], mined: Float[Array, "b k d"]
) -> Float[Array, "c d"]:
    """The batch, then the rows mined for it, owner by owner."""
    constant = jax.lax.stop_gradient(mined).reshape(-1, mined.shape[-1])
    return jnp.concatenate([wide(features), constant])
