# SPDX-License-Identifier: Apache-2.0
"""Norms and shares that stay finite, value and gradient, on degenerate input.

Everything here is at least float32, whatever comes in, and multiplies at full float32
precision: an accelerator's faster products err by 1e-3, and the losses scale cosines
by 50.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# For products of features; the default of accelerators keeps fewer digits.
EXACT = lax.Precision.HIGHEST
# Length up to which a vector has no direction; `evaluation` uses it, too.
NO_LENGTH = 1e-12
_NO_LENGTH = 1e-24  # squared


def wide(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """The same values in float32, or float64 as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def unit(x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """Rows of length 1; a zero row stays zero, with a finite gradient."""
    x = wide(x)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.where(square > _NO_LENGTH, square, 1))


def same_person(person: Int[Array, " b"]) -> Bool[Array, "b b"]:
    """Which pairs of the batch show one person; symmetric, with a true diagonal."""
    return person[:, None] == person[None, :]


def shares(positive: Bool[Array, "b b"], dtype: jnp.dtype) -> Float[Array, "b b"]:
    """Each row's weight spread evenly over its positives, of which there is one."""
    return positive.astype(dtype) / positive.sum(axis=1, keepdims=True)
