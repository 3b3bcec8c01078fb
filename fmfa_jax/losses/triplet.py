# SPDX-License-Identifier: Apache-2.0
"""Triplet losses on global features, per pair: a hinge on positives and negatives.

Notation as in `matching`. Each is the sum of both directions, one value for each pair,
so that a caller can leave pairs out. A direction's row without negatives is 0 in TAL;
in TRL its hardest negative is 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fmfa_jax.losses.arithmetic import cosines, same_person

Direction = Callable[[Array], Array]
"""From cosines, rows the anchors, to one value for each row."""


def tal(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    person: Int[Array, " b"],
    *,
    tau: float = 0.015,
    margin: float = 0.1,
) -> Float[Array, " b"]:
    """Triplet alignment loss: all negatives count (RDE, Qin et al., CVPR 2024).

    L_i = [margin - p_i + tau log sum_j (1 - y_ij) exp(c_ij / tau)]_+, where p_i is the
    mean of the person's cosines, weighted by their softmax at `tau` (held constant),
    and the same with c transposed. The released code's clamp of the sum is left out: it
    guarded float32 against an overflow that log-sum-exp does not have.

    Args:
        image: Global features of any length.
        text: Global features of any length.
        person: Identity of each pair.
        tau: Temperature; as it goes to 0, only the hardest negative counts.
        margin: By how much a positive should beat the negatives.
    """
    same = same_person(person)

    def direction(scores: Float[Array, "b b"]) -> Float[Array, " b"]:
        rivals = ~same
        some = rivals.any(axis=1)
        # Over something finite where there is no negative, so that its gradient is too.
        counted = rivals | ~some[:, None]
        summed = jax.nn.logsumexp(scores / tau, axis=1, where=counted)
        gap = margin - _soft_positive(scores, same, tau) + tau * summed
        return jnp.where(some, jax.nn.relu(gap), 0)

    return _both(direction, cosines(text, image))


def trl(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    person: Int[Array, " b"],
    *,
    tau: float = 0.015,
    margin: float = 0.1,
) -> Float[Array, " b"]:
    """Triplet ranking loss against the hardest negative, as RDE compares it with `tal`.

    L_i = [margin - p_i + max_j (1 - y_ij) c_ij]_+: positives count as 0 in the maximum,
    so the hardest negative is never below 0.

    Args:
        image: Global features of any length.
        text: Global features of any length.
        person: Identity of each pair.
        tau: Temperature of the positives' mean, see `tal`.
        margin: By how much a positive should beat the negative.
    """
    same = same_person(person)

    def direction(scores: Float[Array, "b b"]) -> Float[Array, " b"]:
        hardest = jnp.where(same, 0, scores).max(axis=1)
        return jax.nn.relu(margin - _soft_positive(scores, same, tau) + hardest)

    return _both(direction, cosines(text, image))


def _soft_positive(
    scores: Float[Array, "b b"], same: Bool[Array, "b b"], tau: float
) -> Float[Array, " b"]:
    """Mean of each row's positives, the best of them heaviest; weights are constant."""
    weight = lax.stop_gradient(jax.nn.softmax(scores / tau, axis=1, where=same))
    return jnp.sum(weight * scores, axis=1, where=same)


def _both(direction: Direction, scores: Float[Array, "b b"]) -> Float[Array, " b"]:
    """Captions as anchors, and pictures."""
    return direction(scores) + direction(scores.T)
