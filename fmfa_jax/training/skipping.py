# SPDX-License-Identifier: Apache-2.0
"""Which steps are taken: those whose loss and gradient are finite.

Another one leaves the train state as it was but for the step number, so that data and
randomness move on, and the counts in state["skipped"]:

    total     int32 [], skipped steps of the whole run
    in_a_row  int32 [], skipped steps since the last one that was taken

With more than train.max_skipped in a row no further step is taken. The host reads the
counts only now and then, and so finds the very state that the first of them met.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from fmfa_jax.methods.method import State

Counts = dict[str, Int[Array, ""]]


def no_steps() -> Counts:
    """The counts before the first step."""
    return {name: jnp.zeros((), jnp.int32) for name in ("total", "in_a_row")}


def decide(
    counts: Counts, finite: Bool[Array, ""], *, most: int
) -> tuple[Bool[Array, ""], Counts]:
    """Whether a step is taken, and the counts after it.

    Args:
        counts: Before the step.
        finite: Whether its loss and its gradient are.
        most: Skipped steps in a row that a run survives.
    """
    taken = finite & (counts["in_a_row"] <= most)
    in_a_row = jnp.where(taken, 0, counts["in_a_row"] + 1)
    return taken, {"total": counts["total"] + ~taken, "in_a_row": in_a_row}


def update_if(
    taken: Bool[Array, ""],
    update: Callable[[], State],
    old: State,
    *,
    devices: int = 1,
) -> State:
    """`update()` where the step is taken, otherwise `old`, changed in place.

    One CPU branches, because a select would copy all of `old`. Everything else selects:
    on GPUs a branch waits for the host, and what several devices exchange in a branch
    may cross what they exchange around it, so that hosts wait for each other for ever.

    Args:
        taken: Whether the step is taken.
        update: Computes the new entries.
        old: The entries before.
        devices: How many compute the step.
    """

    def branch() -> State:
        return jax.lax.cond(taken, update, lambda: old)

    def select() -> State:
        return jax.tree.map(lambda x, y: jnp.where(taken, x, y), update(), old)

    if devices > 1:
        return select()
    return jax.lax.platform_dependent(cuda=select, rocm=select, default=branch)
