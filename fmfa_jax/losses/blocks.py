# SPDX-License-Identifier: Apache-2.0
"""Arrays in blocks of their first axis, for what must not exist all at once.

Losses cut along positions of captions or pictures, never along items: a batch spread
over devices stays where it is.
"""

import jax.numpy as jnp
from jaxtyping import Array, Shaped


def count_blocks(positions: int, *, values: int, most: int) -> int:
    """Blocks that `positions` are cut into.

    Args:
        positions: Length of the axis.
        values: Size of what is computed for one position.
        most: Size of what may exist at once; one position always may.
    """
    return -(-positions // max(1, most // values))


def split(x: Shaped[Array, "x ..."], blocks: int) -> Shaped[Array, "k p ..."]:
    """Cut into equal blocks, the last one filled up with zeros."""
    missing = -len(x) % blocks
    padded = jnp.pad(x, ((0, missing), *((0, 0) for _ in x.shape[1:])))
    return padded.reshape(blocks, -1, *x.shape[1:])


def join(blocks: Shaped[Array, "k p ..."], positions: int) -> Shaped[Array, "x ..."]:
    """The first `positions` of all blocks, as one array; the inverse of `split`."""
    return blocks.reshape(-1, *blocks.shape[2:])[:positions]
