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
    log_p = jax.nn.log_softmax(wide(logits), axis=-1)
    chosen = jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    counted = labels != 0
    return -jnp.sum(chosen, where=counted) / jnp.maximum(counted.sum(), 1)
