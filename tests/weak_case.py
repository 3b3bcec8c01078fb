# SPDX-License-Identifier: Apache-2.0
"""The weak method's step on features that a test makes up."""

import jax.numpy as jnp

from fmfa_jax.methods.weak import Recipe, WeakMethod, WeakOptions
from tests.tiny_model import TINY


def compare(
    features, index, bank, weights, *, ready=True, options=None, mesh=None, images=None
):
    """(total, Measured) of one batch against the old memory, see `WeakMethod.compare`.

    Args:
        features: image, text [b,d], and the views' where consistency has a weight.
        index: row of each pair in the memory.
        bank: the memory before the step, or None.
        weights: term -> weight.
        ready: whether the memory may be mined.
        options: of the method.
        mesh: devices of the memory.
        images: image id of each pair.
    """
    recipe = Recipe(losses=weights, weak=options or WeakOptions())
    method = WeakMethod(TINY, recipe, mesh=mesh, first_epoch=1)
    state = {"step": jnp.asarray(ready, jnp.int32)}
    if bank is not None:
        state["memory"] = bank
    return method.compare(features, {}, {"pair": index, "image_id": images}, state)
