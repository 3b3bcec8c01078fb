# SPDX-License-Identifier: Apache-2.0
"""tests/reference/rde.npz for RDE as it trains: the method, its batch and its state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmfa_jax.machines.mesh import make_mesh
from fmfa_jax.methods.rde import RDEMethod, RDEOptions, Recipe
from fmfa_jax.methods.views import Augmentation
from tests.reference_case import Case

PLAIN = Augmentation(flip=0.0, pad=0, erase=0.0)
WORDS_AS_THEY_ARE = {"mask": 0.0, "replace": 0.0, "remove": 0.0}


def rde_method(case: Case, *, losses: Any = None, **options: Any) -> RDEMethod:
    """The method on the file's model and eight pairs, without random views.

    Args:
        case: The file.
        losses: term -> weight; None: 1 for both.
        options: fields of `RDEOptions`.
    """
    recipe = Recipe(
        losses=losses or {"bge": 1.0, "tse": 1.0},
        rde=RDEOptions(width=case.config.tse_width, **WORDS_AS_THEY_ARE, **options),
        augment=PLAIN,
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    return RDEMethod(case.config, recipe, mesh, pairs=len(case.arrays["in/pids"]))


def rde_batch(case: Case, **changes: Any) -> dict[str, jax.Array]:
    """The file's batch, each pair under its own number."""
    person = case.arrays["in/pids"].astype(np.int32)
    batch = {
        "image": case.arrays["in/images"],
        "tokens": case.arrays["in/caption_ids"],
        "person": person,
        "pair": np.arange(len(person), dtype=np.int32),
    }
    return {name: jnp.asarray(rows) for name, rows in (batch | changes).items()}
