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

Rival = Callable[[Array, Array], Array]
"""From cosines, and where they are of one person, to each row's negative."""


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

    def rival(scores: Float[Array, "b b"], same: Bool[Array, "b b"]) -> Array:
        """Return a soft maximum over the negatives of each row."""
        some = (~same).any(axis=1)
        # Over something finite where there is no negative, so that its gradient is too.
        counted = ~same | ~some[:, None]
        summed = jax.nn.logsumexp(scores / tau, axis=1, where=counted)
        return jnp.where(some, tau * summed, -jnp.inf)

    return _triplet(image, text, person, rival, tau=tau, margin=margin)


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

    def rival(scores: Float[Array, "b b"], same: Bool[Array, "b b"]) -> Array:
        return jnp.where(same, 0, scores).max(axis=1)

    return _triplet(image, text, person, rival, tau=tau, margin=margin)


def _triplet(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    person: Int[Array, " b"],
    rival: Rival,
    *,
    tau: float,
    margin: float,
) -> Float[Array, " b"]:
    """The hinge with captions as anchors, and that with pictures."""
    same, scores = same_person(person), cosines(text, image)
    return sum(
        jax.nn.relu(margin - _soft_positive(x, same, tau) + rival(x, same))
        for x in (scores, scores.T)
    )


def _soft_positive(
    scores: Float[Array, "b b"], same: Bool[Array, "b b"], tau: float
) -> Float[Array, " b"]:
    """Mean of each row's positives, the best of them heaviest; weights are constant."""
    weight = lax.stop_gradient(jax.nn.softmax(scores / tau, axis=1, where=same))
    return jnp.sum(weight * scores, axis=1, where=same)
