# SPDX-License-Identifier: Apache-2.0
"""The masked-token loss: guess hidden words from the picture and the other words."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fmfa_jax.losses.arithmetic import wide


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
