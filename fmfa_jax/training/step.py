# SPDX-License-Identifier: Apache-2.0
"""One training step: batch in, state out, a few scalars to look at.

It knows gradients and nothing of any method (see `methods.method`). XLA inserts the
collectives.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fmfa_jax.machines.mesh import batch_sharding, replicated, state_shardings
from fmfa_jax.methods.method import Measured, Method, State
from fmfa_jax.training.gradients import loss_and_gradient


def make_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    method: Method,
) -> State:
    """A train state at step 0, laid out over the mesh.

    Args:
        params: Nested dict of float32 arrays.
        optimizer: Its state is created here.
        mesh: See `make_mesh`.
        method: Adds its own entries.
    """

    def make(params: Any) -> State:
        # A copy, because a step donates the memory of its input.
        params = jax.tree.map(jnp.array, params)
        state = {"params": params, "opt_state": optimizer.init(params)}
        return state | {"step": jnp.zeros((), jnp.int32)}

    shardings = state_shardings(jax.eval_shape(make, params), mesh)
    return jax.jit(make, out_shardings=shardings)(params) | method.initial_state()


def make_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    state: State,
    *,
    mesh: Mesh,
    seed: int,
    schedule: Callable[[Any], Any],
    chunks: int = 1,
) -> Callable[[State, dict[str, jax.Array]], tuple[State, Measured]]:
    """The compiled step, which reuses the memory of the state that it is given.

    Args:
        method: Gradients are taken with respect to the parameters alone.
        optimizer: Turns gradients into updates.
        state: Only the layout of its arrays is read; the new state keeps it.
        mesh: Devices of all arrays of state and batch.
        seed: The randomness of step s is fold_in(seed, s), nothing else.
        schedule: Only to report the learning rate.
        chunks: See `loss_and_gradient`.

    Returns:
        step(state, batch) -> (state, Measured). The scalars also hold `total`,
        `grad_norm` and `lr`; the method's entries are in the new state alone.
    """
    gradient = loss_and_gradient(method, chunks=chunks, mesh=mesh)

    def step(state: State, batch: dict[str, jax.Array]) -> tuple[State, Measured]:
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        (total, measured), grads = gradient(state["params"], batch, key, state)
        updates, opt_state = optimizer.update(
            grads, state["opt_state"], state["params"]
        )
        new = state | measured.state
        new["params"] = optax.apply_updates(state["params"], updates)
        new |= {"opt_state": opt_state, "step": state["step"] + 1}
        scalars = measured.scalars | {
            "total": total,
            "grad_norm": optax.tree.norm(grads),
            "lr": jnp.asarray(schedule(state["step"]), jnp.float32),
        }
        return new, Measured(scalars, records=measured.records)

    # Stated, because a layout that the compiler chose would give the next step another
    # input, and so another program.
    places = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(places, batch_sharding(mesh)),
        out_shardings=(places, replicated(mesh)),
    )
