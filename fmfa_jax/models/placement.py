# SPDX-License-Identifier: Apache-2.0
"""Where values lie while a model computes with parameters that devices share.

Left alone, XLA would keep a kernel in pieces and move the activations of the whole
batch to them. Rows stay where they are instead, and each kernel is gathered where it is
used. Without a mesh in context (`jax.sharding.use_abstract_mesh`) nothing is done.
"""

from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float


def rows_in_place(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Keep the rows of `x` spread over all devices."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spread = PartitionSpec(mesh.axis_names)
    return jax.lax.with_sharding_constraint(x, spread)


def gathered(params: Any) -> Any:
    """Make every parameter whole on every device, and its gradient likewise."""
    if jax.sharding.get_abstract_mesh().empty:
        return params
    whole = PartitionSpec()
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, whole), params)
