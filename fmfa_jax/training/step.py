# SPDX-License-Identifier: Apache-2.0
"""One training step: batch in, state out, a few scalars to look at.

It knows gradients and nothing of any method (see `methods.method`). XLA inserts the
collectives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fmfa_jax.machines.mesh import batch_sharding, replicated, state_shardings
from fmfa_jax.methods.method import Batch, Method, Scalars, State
from fmfa_jax.training.gradients import loss_and_gradient
from fmfa_jax.training.skipping import decide, no_steps, update_if


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Report:
    """What a step tells of itself, on the device or fetched from it.

    Attributes:
        scalars: The method's for the log, and `total`, `grad_norm`, `lr` and `skipped`,
            how many steps of the run were.
        records: See `Measured.records`.
        finite: bool [n], which parameters' gradients are, in the order of the leaves.
    """

    scalars: Scalars
    records: Any
    finite: Any


Step = Callable[[State, Batch], tuple[State, Report]]


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
        """Make the state of step 0."""
        # A copy, because a step donates the memory of its input.
        params = jax.tree.map(jnp.array, params)
        state = {"params": params, "opt_state": optimizer.init(params)}
        return state | {"step": jnp.zeros((), jnp.int32), "skipped": no_steps()}

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
    max_skipped: int = 0,
) -> Step:
    """The compiled step, which reuses the memory of the state that it is given.

    Args:
        method: Gradients are taken with respect to the parameters alone.
        optimizer: Turns gradients into updates.
        state: Only the layout of its arrays is read; the new state keeps it.
        mesh: Devices of all arrays of state and batch.
        seed: The randomness of step s is fold_in(seed, s), nothing else.
        schedule: Only to report the learning rate.
        chunks: See `loss_and_gradient`.
        max_skipped: See `skipping`.

    Returns:
        step(state, batch) -> (state, Report).
    """
    gradient = loss_and_gradient(method, chunks=chunks, mesh=mesh)

    def step(state: State, batch: Batch) -> tuple[State, Report]:
        """Take one step, unless its loss is not finite."""
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        (total, measured), grads = gradient(state["params"], batch, key, state)
        learned = {name: state[name] for name in ("params", "opt_state")}

        def learn() -> State:
            """Apply the update."""
            params = learned["params"]
            updates, opt_state = optimizer.update(grads, learned["opt_state"], params)
            params = optax.apply_updates(params, updates)
            return {"params": params, "opt_state": opt_state}

        # A norm costs nothing more: it is logged anyway. It is infinite, too, where
        # Adam's squares would be.
        norms = [optax.tree.norm(leaf) for leaf in jax.tree.leaves(grads)]
        norm, before = optax.tree.norm(grads), state["skipped"]
        taken, skipped = decide(
            before, jnp.isfinite(total) & jnp.isfinite(norm), most=max_skipped
        )
        new = update_if(taken, learn, learned, devices=mesh.size)
        new |= method.advance(state | new, measured.update, taken)
        new |= {"step": state["step"] + 1, "skipped": skipped}
        scalars = measured.scalars | {
            "total": total,
            "grad_norm": norm,
            # The optimiser counts the steps that were taken.
            "lr": jnp.asarray(schedule(state["step"] - before["total"]), jnp.float32),
            "skipped": skipped["total"].astype(jnp.float32),
        }
        finite = jnp.stack([jnp.isfinite(norm) for norm in norms])
        return state | new, Report(scalars, measured.records, finite)

    # Stated, because a layout that the compiler chose would give the next step another
    # input, and so another program.
    places = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(places, batch_sharding(mesh)),
        out_shardings=(places, replicated(mesh)),
    )
