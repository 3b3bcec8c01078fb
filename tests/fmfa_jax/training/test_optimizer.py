# SPDX-License-Identifier: Apache-2.0
"""The optimiser against torch.optim.Adam, the schedule against IRRA's formula."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fmfa_jax.training.optimizer import (
    AdamOptions,
    ScheduleOptions,
    group,
    make_optimizer,
    make_schedule,
)


def official_factor(epoch: int, epochs: int) -> float:
    """IRRA's schedule as published; epochs count from 1."""
    x = epoch - 1
    if x < 5:
        return 0.1 + 0.9 * x / 5
    return 0.5 * (1 + math.cos(math.pi * (x - 5) / (epochs - 5)))


def test_schedule_is_constant_within_an_epoch_and_follows_the_formula():
    schedule = make_schedule(1e-5, ScheduleOptions(), epochs=60, steps_per_epoch=7)
    got = [float(schedule(jnp.int32(s))) for s in range(60 * 7)]
    want = [1e-5 * official_factor(s // 7 + 1, 60) for s in range(60 * 7)]
    # Measured in units of the base rate: the cosine is computed in float32.
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-7 * 1e-5)


def test_schedule_by_step_moves_at_every_step():
    options = ScheduleOptions(warmup_epochs=1, every="step")
    schedule = make_schedule(1.0, options, epochs=4, steps_per_epoch=10)
    rates = [float(schedule(s)) for s in range(40)]
    assert rates[0] == pytest.approx(0.1)
    assert all(a < b for a, b in itertools.pairwise(rates[:11]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_schedule_without_warm_up_starts_at_the_base_rate():
    schedule = make_schedule(
        2.0, ScheduleOptions(warmup_epochs=0), epochs=4, steps_per_epoch=1
    )
    assert float(schedule(0)) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("name", "factor", "decays"),
    [
        ("image_tower/blocks/mlp/up/kernel", 1.0, True),
        ("image_tower/blocks/mlp/up/bias", 2.0, False),
        ("irr/cross_attention/qkv/kernel", 5.0, True),
        ("irr/cross_attention/qkv/bias", 2.0, False),
        ("irr/blocks/ln_1/scale", 5.0, True),
        ("irr/ln_text/scale", 1.0, True),
        ("irr/head/fc/kernel", 5.0, True),
        ("irr/head/fc/bias", 5.0, False),
        ("classifier/bias", 5.0, False),
    ],
)
def test_irra_groups(name, factor, decays):
    assert group(name, head_factor=5.0, bias_factor=2.0) == (factor, decays)


@pytest.mark.parametrize("groups", ["uniform", "irra"])
def test_ten_steps_equal_torch_adam(groups):
    rng = np.random.default_rng(0)
    start = {
        "image_tower": {"projection": rng.normal(size=(4, 3)).astype(np.float32)},
        "classifier": {
            "kernel": rng.normal(size=(3, 2)).astype(np.float32),
            "bias": rng.normal(size=(2,)).astype(np.float32),
        },
    }
    gradients = [
        jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), start)
        for _ in range(10)
    ]
    tx = make_optimizer(lambda step: 1e-2, AdamOptions(groups=groups, weight_decay=0.1))
    params, state = start, tx.init(start)
    for grads in gradients:
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)

    leaves, _ = jax.tree_util.tree_flatten_with_path(start)
    tensors, rows = [], []
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        factor, decays = (1.0, True)
        if groups == "irra":
            factor, decays = group(name, head_factor=5.0, bias_factor=2.0)
        tensor = torch.tensor(leaf, requires_grad=True)
        tensors.append(tensor)
        rows.append(
            {
                "params": [tensor],
                "lr": 1e-2 * factor,
                "weight_decay": 0.1 if decays else 0.0,
            }
        )
    peer = torch.optim.Adam(rows, betas=(0.9, 0.999), eps=1e-3)
    for grads in gradients:
        for tensor, grad in zip(tensors, jax.tree.leaves(grads), strict=True):
            tensor.grad = torch.tensor(grad)
        peer.step()
    for ours, theirs in zip(jax.tree.leaves(params), tensors, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0, atol=2e-6)


def test_unknown_values_are_refused():
    with pytest.raises(ValueError, match=r"groups='ira'.*mean irra.*uniform, irra"):
        AdamOptions(groups="ira")
    with pytest.raises(ValueError, match=r"every='daily'.*epoch, step"):
        ScheduleOptions(every="daily")
    with pytest.raises(ValueError, match="less than"):
        make_schedule(1.0, ScheduleOptions(), epochs=5, steps_per_epoch=1)


def test_a_methods_own_group_goes_before_the_options():
    """As torch has it: a rate of its own, and no decay."""
    own = {"image_selection/skip/kernel": (100.0, False)}
    start = {
        "image_selection": {"skip": {"kernel": jnp.ones((2, 2))}},
        "image_tower": {"projection": jnp.ones((2, 2))},
    }
    options = AdamOptions(groups="irra", weight_decay=0.5)
    tx = make_optimizer(lambda step: 1e-2, options, own_group=own.get)
    grads = jax.tree.map(jnp.ones_like, start)
    updates, _ = tx.update(grads, tx.init(start), start)
    # The first step of Adam is lr g / (|g| + eps), with g = gradient + decay.
    np.testing.assert_allclose(
        updates["image_selection"]["skip"]["kernel"], -1 / 1.001, rtol=1e-5
    )
    np.testing.assert_allclose(
        updates["image_tower"]["projection"], -1e-2 * 1.5 / 1.501, rtol=1e-5
    )
