# SPDX-License-Identifier: Apache-2.0
"""Confidence weights and the global loss against its definition in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmfa_jax.losses.links import Mined, confidence, global_loss
from fmfa_jax.methods.weak.memory import init_bank, take_rows, update_bank
from fmfa_jax.methods.weak.mining import mine


def one_link(similarity, *, valid=True):
    return Mined(
        similarity=jnp.full((1, 1), similarity, jnp.float32),
        slot=jnp.zeros((1, 1), jnp.int32),
        valid=jnp.full((1, 1), valid),
    )


def test_confidence_of_one_link_and_its_slope():
    values = np.linspace(0.71, 0.99, 8)
    weights = [float(confidence(one_link(s))[0, 0]) for s in values]
    np.testing.assert_allclose(weights, np.e / (np.e + np.exp(values)), rtol=1e-5)
    assert (np.diff(weights) < 0).all()
    assert float(confidence(one_link(0.9, valid=False))[0, 0]) == 0


# The global loss again, in float64 and loops over sets of training pairs.


def _cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def _target(i, column, own, mined, targets, image_id, index):
    """Target logit of anchor i for column = (owner, pair, is a batch column)."""
    owner, pair, live = column
    weights = dict(own[i])
    mates = {j for j in range(len(index)) if image_id[j] == image_id[i]}
    if targets == "union":
        if pair in {index[j] for j in mates}:
            return 1.0
        return weights.get(pair, -np.inf)
    if live:
        return 1.0 if owner in mates else -np.inf
    return weights[pair] if owner == i else -np.inf


def slow_global(image, text, mined, mined_image, mined_text, **how):
    """The definition, row after row."""
    rows, targets = how["rows"], how["targets"]
    index, image_id = how["index"], how["image_id"]
    size = len(image)
    own = []
    for i in range(size):
        kept = [k for k in range(mined.slot.shape[1]) if mined.valid[i, k]]
        mass = np.e + sum(np.exp(mined.similarity[i, k]) for k in kept)
        own.append(
            [
                (mined.slot[i, k], 1 - np.exp(mined.similarity[i, k]) / mass)
                for k in kept
            ]
        )
    columns = [(i, index[i], True) for i in range(size)]
    images, texts = list(image), list(text)
    for i in range(size):
        for k in range(mined.slot.shape[1]):
            if mined.valid[i, k]:
                columns.append((i, mined.slot[i, k], False))
                images.append(mined_image[i, k])
                texts.append(mined_text[i, k])
    losses = []
    for r in range(len(columns) if rows == "all" else size):
        owner = columns[r][0]
        q = np.array(
            [_target(owner, c, own, mined, targets, image_id, index) for c in columns]
        )
        if not columns[r][2]:
            q = np.where(np.isfinite(q), 1.0, -np.inf)
        q = np.exp(q) / np.exp(q).sum()
        loss = 0.0
        for left, right in ((texts, images), (images, texts)):
            s = 50 * np.array([_cosine(left[r], other) for other in right])
            p = np.exp(s - s.max())
            p /= p.sum()
            loss += np.sum(p * (np.log(p) - np.log(q + 1e-6)))
        losses.append(loss)
    return np.mean(losses)


@pytest.fixture(scope="module")
def mined_batch():
    """A batch in which mates, shared slots and own rows are mined by others."""
    rng = np.random.default_rng(5)
    near = lambda rows, d: rows + 0.25 * rng.normal(size=(len(rows), d))  # noqa: E731
    person = rng.normal(size=(3, 6))
    of_pair = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2, 0])
    memory = [near(person[of_pair], 6).astype(np.float32) for _ in range(2)]
    index = np.array([0, 1, 2, 4, 6], np.int32)
    live = [near(person[of_pair[index]], 6).astype(np.float32) for _ in range(2)]
    every = jnp.arange(len(of_pair))
    bank = init_bank(len(of_pair), 6)
    bank = update_bank(bank, *map(jnp.asarray, memory), every, ready=False)
    mined = mine(bank, jnp.asarray(live[0]), jnp.asarray(index))
    rows = take_rows(bank, mined.slot)
    image_id = np.array([0, 1, 2, 3, 1], np.int32)
    return live, mined, rows, index, image_id


@pytest.mark.parametrize("rows", ["all", "batch"])
@pytest.mark.parametrize("targets", ["owner", "union"])
@pytest.mark.parametrize("known", ["unknown", "linked"])
def test_global_equals_its_definition(mined_batch, rows, targets, known):
    (image, text), mined, mined_rows, index, image_id = mined_batch
    got = global_loss(
        jnp.asarray(image),
        jnp.asarray(text),
        mined,
        *mined_rows,
        rows=rows,
        targets=targets,
        index=jnp.asarray(index),
        image_id=jnp.asarray(image_id) if known == "linked" else None,
    )
    as_numpy = jax.tree.map(np.asarray, mined)
    assert as_numpy.valid.any() and not as_numpy.valid.all()
    wanted = slow_global(
        image,
        text,
        as_numpy,
        *map(np.asarray, mined_rows),
        rows=rows,
        targets=targets,
        index=index,
        image_id=image_id if known == "linked" else np.arange(len(index)),
    )
    assert float(got) == pytest.approx(wanted, rel=2e-5)


def test_each_option_changes_the_value(mined_batch):
    (image, text), mined, mined_rows, index, image_id = mined_batch
    arrays = (jnp.asarray(image), jnp.asarray(text), mined, *mined_rows)
    index, image_id = jnp.asarray(index), jnp.asarray(image_id)
    values = {
        float(global_loss(*arrays, rows=rows, targets=targets, index=index, image_id=m))
        for rows in ("all", "batch")
        for targets in ("owner", "union")
        for m in (None, image_id)
    }
    assert len(values) == 8


def test_invalid_candidates_change_neither_value_nor_gradient(mined_batch):
    (image, text), mined, mined_rows, _, _ = mined_batch
    rng = np.random.default_rng(6)

    @jax.jit
    def value_and_gradient(mined, mined_image, mined_text):
        def loss(image, text):
            return global_loss(image, text, mined, mined_image, mined_text)

        return jax.value_and_grad(loss, argnums=(0, 1))(
            jnp.asarray(image), jnp.asarray(text)
        )

    dead = ~np.asarray(mined.valid)[..., None]
    noise = rng.normal(size=mined_rows[0].shape).astype(np.float32)
    others = [
        jnp.where(dead, 9 * noise, mined_rows[0]),
        jnp.where(dead, -3 * noise, mined_rows[1]),
    ]
    other = Mined(
        similarity=jnp.where(dead[..., 0], -jnp.inf, mined.similarity),
        slot=jnp.where(dead[..., 0], 0, mined.slot),
        valid=mined.valid,
    )
    wanted = value_and_gradient(mined, *mined_rows)
    got = value_and_gradient(other, *others)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_without_a_link_the_target_is_the_own_pair(mined_batch):
    (image, text), mined, mined_rows, index, _ = mined_batch
    nothing = Mined(mined.similarity, mined.slot, jnp.zeros_like(mined.valid))
    got = global_loss(jnp.asarray(image), jnp.asarray(text), nothing, *mined_rows)
    cosines = np.array([[50 * _cosine(t, v) for v in image] for t in text])
    wanted = 0.0
    for s in (cosines, cosines.T):
        log_p = s - np.log(np.exp(s).sum(axis=1, keepdims=True))
        log_q = np.log(np.eye(len(index)) + 1e-6)
        wanted += np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1))
    assert float(got) == pytest.approx(wanted, rel=1e-5)
