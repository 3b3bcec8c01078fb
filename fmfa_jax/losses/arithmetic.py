# SPDX-License-Identifier: Apache-2.0
"""Norms, cosines and shares that stay finite, value and gradient, on any input.

Everything is computed in float32 or wider, and products at full float32 precision:
the faster products of accelerators err by 1e-3, and losses scale cosines by 50.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# For products of features; the default of accelerators keeps fewer digits.
EXACT = lax.Precision.HIGHEST
NO_LENGTH = 1e-12
"""A vector that is no longer than this has no direction; cosines with it are 0."""


def wide(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """The same values in float32, or float64 as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def inverse_norm(x: Float[Array, "*rows d"]) -> Float[Array, "*rows 1"]:
    """One over the length of each row; 0 for a row without a direction.

    The gradient is finite everywhere, and 0 for a row without a direction.
    """
    x = wide(x)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    lives = square > NO_LENGTH**2
    return jnp.where(lives, lax.rsqrt(jnp.where(lives, square, 1)), 0)


def unit(x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """Rows of length 1; a row without a direction becomes zeros."""
    return wide(x) * inverse_norm(x)


def cosines(
    left: Float[Array, "rows d"], right: Float[Array, "columns d"]
) -> Float[Array, "rows columns"]:
    """Cosine of every row of `left` with every row of `right`."""
    return jnp.matmul(unit(left), unit(right).T, precision=EXACT)


def same_person(person: Int[Array, " b"]) -> Bool[Array, "b b"]:
    """Which pairs of the batch show one person; symmetric, with a true diagonal."""
    return person[:, None] == person[None, :]


def shares(positive: Bool[Array, "b b"], dtype: jnp.dtype) -> Float[Array, "b b"]:
    """Each row's weight, spread evenly over its positives; every row needs one."""
    return positive.astype(dtype) / positive.sum(axis=1, keepdims=True)
