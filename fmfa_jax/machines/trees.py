# SPDX-License-Identifier: Apache-2.0
"""Pytrees of arrays, leaf by leaf and by name."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


def path_name(path: tuple) -> str:
    """A pytree path as text: "image_tower/blocks/ln_1/bias"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Path name -> leaf, in the order of the leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def not_finite(tree: Any) -> list[str]:
    """Names of the arrays that hold a NaN or an infinity.

    Each array is reduced to a bit on its devices, all by one program, and all bits are
    fetched at once. All processes must make the same call.
    """
    bits = jax.device_get(_finite(named_leaves(tree)))
    return [name for name in named_leaves(tree) if not bits[name]]


@jax.jit
def _finite(leaves: dict[str, Array]) -> dict[str, Bool[Array, ""]]:
    return {name: jnp.isfinite(leaf).all() for name, leaf in leaves.items()}


def some(things: Sequence[Any]) -> str:
    """The first few, and how many there are: "a, b, c, d, e, ... (43 in all)"."""
    head = ", ".join(str(each) for each in things[:5])
    return head if len(things) <= 5 else f"{head}, ... ({len(things)} in all)"
