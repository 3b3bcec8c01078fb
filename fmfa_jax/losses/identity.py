# SPDX-License-Identifier: Apache-2.0
"""The identity loss: pictures and captions classified by one head."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fmfa_jax.losses.arithmetic import wide


def identity_loss(
    image_logits: Float[Array, "b k"],
    text_logits: Float[Array, "b k"],
    person: Int[Array, " b"],
) -> Float[Array, ""]:
    """Cross-entropy of both modalities' identity scores, averaged.

    Args:
        image_logits: Scores of the pictures.
        text_logits: Scores of the captions, from the same classifier.
        person: Identity of each pair, 0..k-1.
    """
    both = [_cross_entropy(x, person) for x in (image_logits, text_logits)]
    return sum(both) / 2


def _cross_entropy(
    logits: Float[Array, "b k"], label: Int[Array, " b"]
) -> Float[Array, ""]:
    log_p = jax.nn.log_softmax(wide(logits), axis=1)
    return -jnp.take_along_axis(log_p, label[:, None], axis=1).mean()
