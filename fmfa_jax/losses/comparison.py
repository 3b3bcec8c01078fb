# SPDX-License-Identifier: Apache-2.0
"""The one large product of EFA: rows of all items against the groups of all items."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fmfa_jax.losses.arithmetic import EXACT, unit, wide
from fmfa_jax.losses.blocks import count_blocks, join, split

# Cosines that exist at once: 8 MiB, which a CPU's cache holds, or 1 GiB, so that an
# accelerator has much to do in each of few rounds.
AT_ONCE_CPU, AT_ONCE_ACCELERATOR = 2**21, 2**28
_BELOW = -2  # every cosine


def best_cosines(
    rows: Float[Array, "i x d"],
    groups: Float[Array, "j l d"],
    mask: Bool[Array, "j l"],
    *,
    operands: str = "float32",
    backend: str = "cpu",
) -> Float[Array, "x i j"]:
    """For row x of item i the largest cosine with a group of item j, at [x, i, j].

    Groups outside `mask` do not count; an item without any scores 0. Of groups that tie
    the first takes the gradient. Computed for a few positions x of all items at a time;
    the backward pass needs the winners' numbers, not their cosines again.

    Args:
        rows: Words or patches, of any length.
        groups: What they are compared with, of any length.
        mask: Groups that count.
        operands: "float32", or "bfloat16" to round both sides of the products to it;
            their sums, cosines and gradients stay float32. It moves EFA's gradient by
            1 to 7 %, where bfloat16 towers alone move it by 15 to 42 %
            (docs/performance.md).
        backend: In JAX's words. "cpu" looks the winners up in the backward pass; all
            others multiply, at which they are better, and work in larger blocks.
    """
    most = AT_ONCE_CPU if backend == "cpu" else AT_ONCE_ACCELERATOR
    positions, values = rows.shape[1], rows.shape[0] * mask.size
    blocks = count_blocks(positions, values=values, most=most)
    cut = split(unit(rows).swapaxes(0, 1), blocks)
    best = _best(cut, unit(groups), mask, operands, backend)
    return jnp.where(mask.any(axis=1), join(best, positions), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _best(
    rows: Float[Array, "k p i d"],
    groups: Float[Array, "j l d"],
    mask: Bool[Array, "j l"],
    operands: str,
    backend: str,
) -> Float[Array, "k p i j"]:
    """`best_cosines` block by block, of unit rows; an item without groups scores -2."""
    return _forward(rows, groups, mask, operands, backend)[0]


def _forward(
    rows: Array, groups: Array, mask: Array, operands: str, backend: str
) -> tuple[Array, tuple[Array, Array, Array]]:
    del backend
    if operands != "float32":
        rows, groups = rows.astype(operands), groups.astype(operands)
    number = jnp.arange(groups.shape[1], dtype=jnp.int16)

    def compare(block: Float[Array, "p i d"]) -> tuple[Array, Array]:
        """Return a block's best cosines and where they are."""
        scores = jnp.where(mask, _product("pid,jld->pijl", block, groups), _BELOW)
        best = scores.max(axis=-1)
        # On a CPU argmax would take a third of the product's time.
        ties = jnp.where(scores == best[..., None], number, len(number))
        return best, ties.min(axis=-1)

    best, winner = lax.map(compare, rows)
    return best, (rows, groups, winner)


def _backward(
    operands: str, backend: str, kept: tuple[Array, Array, Array], cotangent: Array
) -> tuple[Array, Array, None]:
    del operands  # Those of what was kept.
    rows, groups, winner = kept
    add, blocks = _multiplied, (rows, winner, cotangent)
    if backend == "cpu":
        add = _looked_up
        blocks = tuple(x.reshape(-1, *x.shape[2:]) for x in blocks)
    total = jnp.zeros_like(groups, cotangent.dtype)
    total, gradient = lax.scan(functools.partial(add, groups), total, blocks)
    return gradient.reshape(rows.shape), total, None


_best.defvjp(_forward, _backward)


def _looked_up(
    groups: Float[Array, "j l d"],
    total: Float[Array, "j l d"],
    position: tuple[Float[Array, "i d"], Int[Array, "i j"], Float[Array, "i j"]],
) -> tuple[Float[Array, "j l d"], Float[Array, "i d"]]:
    """Add the groups' gradient from one position, and return that of its rows."""
    row, winner, weight = position
    won = jnp.arange(len(groups)), winner
    gradient = jnp.einsum("ij,ijd->id", weight, wide(groups[won]), precision=EXACT)
    return total.at[won].add(weight[..., None] * wide(row)[:, None]), gradient


def _multiplied(
    groups: Float[Array, "j l d"],
    total: Float[Array, "j l d"],
    block: tuple[Float[Array, "p i d"], Int[Array, "p i j"], Float[Array, "p i j"]],
) -> tuple[Float[Array, "j l d"], Float[Array, "p i d"]]:
    """The same for a block, as products with a matrix that is 0 but for the winners."""
    rows, winner, weight = block
    won = winner[..., None] == jnp.arange(groups.shape[1])
    chosen = jnp.where(won, weight[..., None], 0).astype(groups.dtype)
    gradient = _product("pijl,jld->pid", chosen, groups)
    return total + _product("pijl,pid->jld", chosen, rows), gradient


def _product(axes: str, left: Array, right: Array) -> Array:
    """Sums in at least float32, exact but for the rounding of the operands."""
    exact = None if left.dtype == jnp.bfloat16 else EXACT
    kind = jnp.promote_types(left.dtype, jnp.float32)
    return jnp.einsum(axes, left, right, precision=exact, preferred_element_type=kind)
