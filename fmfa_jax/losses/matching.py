# SPDX-License-Identifier: Apache-2.0
"""Losses on global features: which caption belongs to which picture.

Throughout, row i of the features is a pair, c_ij = cos(text_i, image_j), y_ij = 1 where
i and j show one person, and q_ij = y_ij / sum_k y_ik.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fmfa_jax.losses.arithmetic import (
    EXACT,
    cosines,
    same_person,
    shares,
    unit,
    wide,
)

EPSILON = 1e-8
# The strength that each rule of A-SDM was published or tuned with; the paper's depends
# on the data set (1 on RSTPReid).
ALPHA = {"official": 0.1, "paper": 10.0, "plus": 2.0}
WEIGHTS = ("none", *ALPHA)
REDUCTIONS = ("mean", "sum")


def sdm(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    person: Int[Array, " b"],
    **options: Any,
) -> Float[Array, ""]:
    """Similarity distribution matching, plain or adaptive: the mean of `pair_sdm`.

    Args:
        image: See `pair_sdm`.
        text: See `pair_sdm`.
        person: See `pair_sdm`.
        options: Further arguments of `pair_sdm`.
    """
    return pair_sdm(image, text, person, **options).mean()


def pair_sdm(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    person: Int[Array, " b"],
    *,
    scale: float = 50.0,
    weight: str = "none",
    alpha: float | None = None,
) -> Float[Array, " b"]:
    """Similarity distribution matching of each pair: the sum of both directions.

    L_i = w_i sum_j P_ij (log P_ij - log(q_ij + 1e-8)), P = softmax_j(scale c_ij),
    and the same with c transposed: a reverse KL (Jiang and Ye, CVPR 2023, eq. 5-7).
    The adaptive form (A-SDM, arXiv 2509.13754) weighs up rows that miss their match.

    Args:
        image: Global features of any length.
        text: Global features of any length.
        person: Identity of each pair.
        scale: 1 / temperature.
        weight: "none": w = 1. "official", as the released code computes it: 1 + alpha
            (c at the row's best column - c at its first column of the same person), or
            1 where both are one column; a hit on another picture of the person counts
            as a miss. "paper", the printed formula: 1 + alpha (max_k P_ik - P_ii).
            "plus", ours: 1 + alpha (max_k P_ik - max over the person's k of P_ik),
            held constant. The other two pass gradients through w.
        alpha: Strength of the weight; None: the rule's own, see `ALPHA`.
    """
    if weight not in WEIGHTS:
        raise ValueError(f"weight must be one of {WEIGHTS}, got {weight!r}.")
    scores = cosines(text, image)
    same = same_person(person)
    alpha = ALPHA.get(weight) if alpha is None else alpha
    return sum(
        _matching(rows, same, scale=scale, weight=weight, alpha=alpha)
        for rows in (scores, scores.T)
    )


def _matching(
    scores: Float[Array, "b b"],
    same: Bool[Array, "b b"],
    *,
    scale: float,
    weight: str,
    alpha: float | None,
) -> Float[Array, " b"]:
    """One direction of SDM: rows are the anchors."""
    log_p = jax.nn.log_softmax(scale * scores, axis=1)
    p = jnp.exp(log_p)
    rows = _divergence(log_p, shares(same, scores.dtype))
    if weight == "official":
        rows = rows * (1 + alpha * _missed_by(scores, same))
    elif weight == "paper":
        rows = rows * (1 + alpha * (p.max(axis=1) - jnp.diagonal(p)))
    elif weight == "plus":
        # Zero by itself where the best column is the person's.
        lost = p.max(axis=1) - jnp.max(p, axis=1, where=same, initial=0)
        rows = rows * (1 + alpha * lax.stop_gradient(lost))
    return rows


def _divergence(
    log_p: Float[Array, "b b"], target: Float[Array, "b b"]
) -> Float[Array, " b"]:
    """KL(p || target) of each row, the target kept away from 0."""
    return jnp.sum(jnp.exp(log_p) * (log_p - jnp.log(target + EPSILON)), axis=1)


def _missed_by(
    scores: Float[Array, "b b"], same: Bool[Array, "b b"]
) -> Float[Array, " b"]:
    """Best score of the row less that of the person's first column.

    Taken by index and not as a maximum: where several columns tie, the official code's
    gradient goes to the first of them alone.
    """
    best = jnp.argmax(scores, axis=1)[:, None]
    match = jnp.argmax(same, axis=1)[:, None]
    gap = jnp.take_along_axis(scores, best, 1) - jnp.take_along_axis(scores, match, 1)
    return gap[:, 0]


def itc(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    *,
    scale: float = 50.0,
    reduction: str = "mean",
    person: Int[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Image-text contrast: the mean of `pair_itc` over the batch.

    Args:
        image: Global features of any length.
        text: Global features of any length.
        scale: 1 / temperature.
        reduction: "mean" or "sum" over the two directions.
        person: See `pair_itc`.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}.")
    both = pair_itc(image, text, scale=scale, person=person).mean()
    return 2 * both if reduction == "sum" else both


def pair_itc(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    *,
    scale: float = 50.0,
    person: Int[Array, " b"] | None = None,
) -> Float[Array, " b"]:
    """InfoNCE of each pair, the mean of both directions (Radford et al. 2021).

    Args:
        image: Global features of any length.
        text: Global features of any length.
        scale: 1 / temperature.
        person: Identity of each pair; all pairs of a person then share the target
            evenly. None: only the pair itself matches.
    """
    positive = (
        jnp.eye(len(image), dtype=bool) if person is None else same_person(person)
    )
    return pair_contrast(cosines(text, image), positive, scale=scale)


def pair_contrast(
    scores: Float[Array, "b b"], positive: Bool[Array, "b b"], *, scale: float
) -> Float[Array, " b"]:
    """Mean cross-entropy of row i and column i, targets shared by their positives."""
    target = shares(positive, scores.dtype)
    rows = jnp.sum(target * jax.nn.log_softmax(scale * scores, axis=1), axis=1)
    columns = jnp.sum(target * jax.nn.log_softmax(scale * scores.T, axis=1), axis=1)
    return -(rows + columns) / 2


def cmpm(
    image: Float[Array, "b d"], text: Float[Array, "b d"], person: Int[Array, " b"]
) -> Float[Array, ""]:
    """Cross-modal projection matching, both directions (Zhang and Lu, ECCV 2018).

    P = softmax_j(x_i . y_j / |y_j|); the target is y / |y|_2 per row and does not sum
    to 1, as in the code that this field shares.
    """
    image, text = wide(image), wide(text)
    same = same_person(person).astype(image.dtype)
    target = same * lax.rsqrt(same.sum(axis=1, keepdims=True))
    losses = []
    for anchor, other in ((image, text), (text, image)):
        projected = jnp.matmul(anchor, unit(other).T, precision=EXACT)
        log_p = jax.nn.log_softmax(projected, axis=1)
        losses.append(_divergence(log_p, target).mean())
    return sum(losses)
