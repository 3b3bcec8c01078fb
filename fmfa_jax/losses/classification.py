# SPDX-License-Identifier: Apache-2.0
"""Cross-entropies: who is it, and which word was hidden."""

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


def token_losses(
    logits: Float[Array, "b c v"], labels: Int[Array, "b c"]
) -> Float[Array, "b c"]:
    """Cross-entropy of each row; entries with label 0 are undefined."""
    log_p = jax.nn.log_softmax(wide(logits), axis=-1)
    return -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]


def labelled_mean(
    losses: Float[Array, "b c"], labels: Int[Array, "b c"]
) -> Float[Array, ""]:
    """Average of `token_losses` over the labelled rows of the batch; 0 without any."""
    counted = labels != 0
    return jnp.sum(wide(losses), where=counted) / jnp.maximum(counted.sum(), 1)
