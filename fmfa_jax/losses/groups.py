# SPDX-License-Identifier: Apache-2.0
"""The global loss: a batch against itself and the rows mined for it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fmfa_jax.losses.arithmetic import wide
from fmfa_jax.losses.links import cosine_matrix, reverse_kl
from fmfa_jax.methods.weak.mining import Mined, confidence


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

    The columns are the batch and then every mined row: the image row mined for an
    anchor is a positive of its text, the text row a positive of its image.

    Args:
        image: image features; with `text` all that carries a gradient.
        text: text features.
        mined: rows linked to each anchor.
        mined_image: their image rows in the memory.
        mined_text: their text rows.
        scale: 1 / tau of the logits.
        rows: anchors of the mean: "all", batch and mined rows (the official code), or
            "batch" (the paper).
        targets: see `group_targets`.
        index: row of each pair, needed for targets = "union".
        image_id: see `group_targets`.
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
        raise ValueError(f"rows: wanted 'all' or 'batch', got {rows!r}")
    anchors = len(wanted)
    loss = reverse_kl(
        scale * cosine_matrix(texts[:anchors], images), wanted, columns=live
    ) + reverse_kl(scale * cosine_matrix(images[:anchors], texts), wanted, columns=live)
    return jnp.sum(jnp.where(weight, loss, 0.0)) / jnp.sum(weight)


def group_targets(
    mined: Mined,
    *,
    targets: str = "owner",
    index: Int[Array, " b"] | None = None,
    image_id: Int[Array, " b"] | None = None,
) -> Float[Array, "b c"]:
    """Target logits (13) of each anchor over the batch and all mined rows.

    1 for the own pair, the confidence weight for its mined rows, -inf elsewhere.

    Args:
        mined: rows linked to each anchor.
        targets: "owner", a mined row belongs to the anchor that mined it and is a
            negative of every other (the official code), or "union", whatever holds the
            same training pair belongs together: a batch mate whose row was mined is a
            positive with the mined weight, a row that two anchors mined is one of
            both, and an anchor's own row mined by another is the anchor's own.
        index: row of each pair, needed for "union".
        image_id: image of each pair; batch mates with the same one get 1, like the own
            pair. None: nothing is known.
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
        raise ValueError(f"targets: wanted 'owner' or 'union', got {targets!r}")
    mates = jnp.where(same, 1.0, -jnp.inf)
    own = jnp.repeat(jnp.eye(size, dtype=bool), links, axis=1)
    return jnp.concatenate(
        [mates, jnp.where(own, weight.reshape(1, -1), -jnp.inf)], axis=1
    )


def _union_targets(
    mined: Mined, weight: Array, same: Bool[Array, "b b"], index: Int[Array, " b"]
) -> Float[Array, "b c"]:
    """The targets by training pair: columns that hold the same pair get the same."""
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
