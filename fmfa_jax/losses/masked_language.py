# SPDX-License-Identifier: Apache-2.0
"""The masked-token loss: what was the word, given the picture and the other words."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fmfa_jax.losses.arithmetic import wide


def masked_language_loss(
    logits: Float[Array, "b c v"], labels: Int[Array, "b c"]
) -> Float[Array, ""]:
    """Cross-entropy, averaged over all labelled rows of the batch; 0 without any.

    Args:
        logits: scores over the vocabulary.
        labels: the original token; 0 where the row is not to be counted.
    """
    return labelled_mean(token_losses(logits, labels), labels)


def token_losses(
    logits: Float[Array, "b c v"], labels: Int[Array, "b c"]
) -> Float[Array, "b c"]:
    """Cross-entropy of every row for itself; what stands at label 0 means nothing."""
    log_p = jax.nn.log_softmax(wide(logits), axis=-1)
    return -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]


def labelled_mean(
    losses: Float[Array, "b c"], labels: Int[Array, "b c"]
) -> Float[Array, ""]:
    """Average of `token_losses` over all labelled rows of the batch."""
    counted = labels != 0
    return jnp.sum(wide(losses), where=counted) / jnp.maximum(counted.sum(), 1)
