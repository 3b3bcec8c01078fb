# SPDX-License-Identifier: Apache-2.0
"""One training step: batch in, state out, a few scalars to look at.

`make_step` knows gradients and nothing about a method; a method is a `Loss` over the
GLOBAL batch (see gradients.py, supervised.py and weak.py). XLA inserts the collectives.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fmfa_jax.machines.mesh import (
    batch_sharding,
    replicated,
    state_shardings,
)
from fmfa_jax.training.gradients import Loss, Measured, loss_and_gradient

# A state is {"params", "opt_state", "step"} and, for the weak method, "memory": a plain
# pytree, so optax, orbax and donation need no wrapper.
State = dict[str, Any]


def make_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    memory: Any = None,
) -> State:
    """A train state at step 0, laid out over the mesh.

    Args:
        params: nested dict of arrays, float32.
        optimizer: whose state is made here.
        mesh: see `make_mesh`.
        memory: the weak method's banks, already laid out; None for the others.
    """

    def make(params: Any) -> State:
        # A copy, because a step gives its input's memory away.
        params = jax.tree.map(jnp.array, params)
        state = {"params": params, "opt_state": optimizer.init(params)}
        return state | {"step": jnp.zeros((), jnp.int32)}

    shardings = state_shardings(jax.eval_shape(make, params), mesh)
    state = jax.jit(make, out_shardings=shardings)(params)
    return state if memory is None else state | {"memory": memory}


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    state: State,
    *,
    mesh: Mesh,
    seed: int,
    schedule: Callable[[Any], Any],
    chunks: int = 1,
) -> Callable[[State, dict[str, jax.Array]], tuple[State, Measured]]:
    """The compiled step; the given state's memory is reused for the new one.

    Args:
        loss: gradients are taken with respect to the parameters alone.
        optimizer: turns gradients into updates.
        state: where its arrays lie is where they stay; only that is read here.
        mesh: all arrays of state and batch lie on it.
        seed: randomness of step s is fold_in(seed, s), nothing else.
        schedule: only to report the learning rate.
        chunks: see `loss_and_gradient`.

    Returns:
        step(state, batch) -> (state, Measured), whose scalars also hold `total`,
        `grad_norm` and `lr`.
    """
    gradient = loss_and_gradient(loss, chunks=chunks, mesh=mesh)

    def step(state: State, batch: dict[str, jax.Array]) -> tuple[State, Measured]:
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        (total, measured), grads = gradient(state["params"], batch, key, state)
        updates, opt_state = optimizer.update(
            grads, state["opt_state"], state["params"]
        )
        params = optax.apply_updates(state["params"], updates)
        new = {"params": params, "opt_state": opt_state, "step": state["step"] + 1}
        if measured.memory is not None:
            new["memory"] = measured.memory
        scalars = measured.scalars | {
            "total": total,
            "grad_norm": optax.tree.norm(grads),
            "lr": jnp.asarray(schedule(state["step"]), jnp.float32),
        }
        return new, Measured(scalars, links=measured.links)

    # Stated, because what the compiler would choose makes the next step's input
    # another layout, and so another program.
    places = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(places, batch_sharding(mesh)),
        out_shardings=(places, replicated(mesh)),
    )
