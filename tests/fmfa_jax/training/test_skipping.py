# SPDX-License-Identifier: Apache-2.0
"""Steps that are not finite change nothing, on any devices, in any chunks."""

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmfa_jax.machines.mesh import make_mesh, replicated, to_devices
from fmfa_jax.methods import Measured, Method
from fmfa_jax.training.optimizer import AdamOptions, make_optimizer
from fmfa_jax.training.step import make_state, make_step
from tests.tiny_model import TINY

MOST = 2  # skipped steps in a row that these runs survive
GOOD, OTHER = [1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 5.0, 2.0]
BAD = {
    "only the gradient": [1.0, 0.0, 3.0, 4.0],
    "the loss": [1.0, np.nan, 3.0, 4.0],
    "only the gradient's norm": [1e38, 2.0, 3.0, 4.0],
}


@dataclass(frozen=True)
class Roots(Method):
    """sqrt(w x) + x v: at x = 0 it is finite and its gradient is not."""

    mesh: Any = field(default=None, compare=False)

    batch_keys = ("x",)

    @classmethod
    def for_task(cls, recipe, task):
        raise NotImplementedError

    def encode(self, params, batch, key):
        x = batch["x"][:, None]
        return jnp.sqrt(params["w"] * x).sum(1) + (params["v"] * x).sum(1), {}

    def compare(self, features, notes, batch, state):
        return jnp.mean(features), Measured({"root": features[0]}, features)

    def initial_state(self):
        return jax.device_put({"last": np.zeros(4, np.float32)}, replicated(self.mesh))

    def advance(self, state, update, taken):
        return {"last": jnp.where(taken, update, state["last"])}


@functools.cache
def setting(devices=1, chunks=1, width=3):
    """(what makes the first state, the compiled step, the mesh)"""
    mesh = make_mesh(devices=jax.devices()[:devices])
    method = Roots(TINY, mesh)

    def rate(step):
        return 0.1 / (1 + step)

    optimizer = make_optimizer(rate, AdamOptions())
    w, v = np.full(width, 2, np.float32), np.zeros(width, np.float32)
    state = make_state({"w": w, "v": v}, optimizer, mesh, method)
    keys = {"schedule": rate, "chunks": chunks, "max_skipped": MOST}
    step = make_step(method, optimizer, state, mesh=mesh, seed=0, **keys)
    return functools.partial(jax.tree.map, jnp.copy, state), step, mesh


def run(batches, state=None, **where):
    """The states after each step, on the host, and the reports."""
    first, step, mesh = setting(**where)
    state, states, reports = first() if state is None else state, [], []
    for rows in batches:
        batch = to_devices({"x": np.asarray(rows, np.float32)}, mesh)
        state, report = step(state, batch)
        states.append(jax.device_get(state))
        reports.append(jax.device_get(report))
    return states, reports


def without_counts(state):
    return {key: state[key] for key in ("params", "opt_state", "last")}


def assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def counts(state):
    return [int(x) for x in (*state["skipped"].values(), state["step"])]


@pytest.mark.parametrize("why", BAD)
@pytest.mark.parametrize(("devices", "chunks"), [(1, 1), (2, 1), (2, 2)])
def test_a_step_that_is_not_finite_leaves_no_trace(why, devices, chunks):
    """The oracle is the run that never met the bad batch."""
    where = {"devices": devices, "chunks": chunks}
    states, reports = run([GOOD, BAD[why], OTHER], **where)
    want, _ = run([GOOD, OTHER], **where)
    assert_same(without_counts(states[1]), without_counts(want[0]))
    assert_same(without_counts(states[2]), without_counts(want[1]))
    assert [counts(state) for state in states] == [[0, 0, 1], [1, 1, 2], [0, 1, 3]]
    assert [report.scalars["skipped"] for report in reports] == [0, 1, 1]
    assert np.isfinite(reports[1].scalars["total"]) == (why != "the loss")
    # v, w: the gradient of v is x, whatever x is.
    fine = {
        "only the gradient": [True, False],
        "the loss": [False, False],
        "only the gradient's norm": [False, True],
    }
    assert reports[1].finite.tolist() == fine[why]
    assert reports[0].finite.all() and reports[2].finite.all()
    # The rate that is logged is the one that the optimiser takes.
    np.testing.assert_allclose([r.scalars["lr"] for r in reports], [0.1, 0.05, 0.05])


def test_weights_that_are_not_finite_are_not_learned_from():
    first, *_ = setting()
    state = first()
    state["params"] = {**state["params"], "w": jnp.full(3, jnp.nan)}
    state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, first()))
    before = jax.device_get(state)
    (after,), _ = run([GOOD], state)
    assert_same(without_counts(after), without_counts(before))


def test_a_run_goes_on_after_a_few_and_stands_still_after_more():
    bad = BAD["only the gradient"]
    few, _ = run([GOOD, bad, bad, OTHER])
    want, _ = run([GOOD, OTHER])
    assert_same(without_counts(few[-1]), without_counts(want[-1]))
    assert counts(few[-1]) == [0, 2, 4]
    more, _ = run([GOOD, bad, bad, bad, OTHER, GOOD])
    assert_same(without_counts(more[-1]), without_counts(want[0]))
    assert counts(more[-1]) == [5, 5, 6]


def test_a_select_and_a_branch_agree(monkeypatch):
    """GPUs select; here both run on the CPU."""
    batches = [GOOD, BAD["only the gradient"], OTHER]
    want, _ = run(batches)
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *, default, cuda, rocm: cuda()
    )
    setting.cache_clear()
    got, _ = run(batches)
    setting.cache_clear()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-6), got, want)


def test_the_state_is_changed_in_place():
    """Neither side of the decision is copied."""
    first, step, mesh = setting(width=100_000)
    batch = to_devices({"x": np.asarray(GOOD, np.float32)}, mesh)
    memory = step.lower(first(), batch).compile().memory_analysis()
    learned = jax.tree.leaves([first()[name] for name in ("params", "opt_state")])
    size = sum(leaf.nbytes for leaf in learned)
    assert memory.alias_size_in_bytes > 0.99 * size
    gradient_and_roots = (size / 3) * (1 + 4)
    assert memory.temp_size_in_bytes < gradient_and_roots
