# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmfa_jax import models
from fmfa_jax.models.heads import labelled_rows

LABELS = [[0, 7, 0, 8, 9, 0], [0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("capacity", [1, 3, 6])
def test_labelled_rows_equal_a_loop(capacity):
    rows = labelled_rows(jnp.asarray(LABELS), capacity=capacity)
    dropped = []
    for i, labels in enumerate(np.array(LABELS)):
        positions = np.flatnonzero(labels)
        kept = positions[:capacity]
        dropped.append(len(positions) - len(kept))
        expected = np.pad(labels[kept], (0, capacity - len(kept)))
        np.testing.assert_array_equal(rows.labels[i], expected)
        np.testing.assert_array_equal(rows.position[i, : len(kept)], kept)
    np.testing.assert_array_equal(rows.dropped, dropped)


@pytest.mark.parametrize("capacity", [0, 7])
def test_impossible_capacity_is_refused(capacity):
    with pytest.raises(ValueError, match=f"1..6 .*got {capacity}"):
        labelled_rows(jnp.asarray(LABELS), capacity=capacity)


def test_gathering_first_gives_the_same_logits(tiny, tiny_params):
    """The oracle scores every position by asking for all of them."""
    rng = np.random.default_rng(0)
    text = rng.normal(size=(2, tiny.context_length, tiny.embed_dim))
    image = rng.normal(size=(2, tiny.image_tokens, tiny.embed_dim))
    text, image = jnp.float32(text), jnp.float32(image)
    labels = np.zeros((2, tiny.context_length), np.int32)
    labels[0, [2, 5]], labels[1, 7] = (11, 12), 13

    @jax.jit
    def few_and_all(labels):
        model = models.bind(tiny, tiny_params)
        every = jnp.ones_like(labels)
        few = model.masked_logits(text, image, labels, 2)
        return few, model.masked_logits(text, image, every, labels.shape[1])

    few, every = few_and_all(labels)
    np.testing.assert_array_equal(few.labels, [[11, 12], [13, 0]])
    np.testing.assert_allclose(few.logits[0], every.logits[0, [2, 5]], atol=1e-5)
    np.testing.assert_allclose(few.logits[1, 0], every.logits[1, 7], atol=1e-5)
    assert not few.dropped.any()


def test_hidden_padding_gives_the_logits_of_the_cut_caption(tiny, tiny_params):
    rng = np.random.default_rng(0)
    text = jnp.float32(rng.normal(size=(2, tiny.context_length, tiny.embed_dim)))
    image = jnp.float32(rng.normal(size=(2, tiny.image_tokens, tiny.embed_dim)))
    labels = np.zeros((2, tiny.context_length), np.int32)
    labels[0, 2], labels[1, 3] = 11, 12
    labels = jnp.asarray(labels)
    lengths = jnp.asarray([5, tiny.context_length])
    model = models.bind(tiny, tiny_params)
    whole = model.masked_logits(text, image, labels, 1, lengths).logits
    cut = model.masked_logits(text[:1, :5], image[:1], labels[:1, :5], 1).logits
    np.testing.assert_allclose(whole[:1], cut, atol=1e-5)
    looked_at = model.masked_logits(text, image, labels, 1).logits
    np.testing.assert_allclose(whole[1], looked_at[1], atol=1e-5)
    assert abs(whole[0] - looked_at[0]).max() > 1e-3


def test_identity_logits_are_one_linear_layer(tiny, tiny_params):
    features = np.random.default_rng(0).normal(size=(3, tiny.embed_dim))
    features = jnp.float32(features)
    params = jax.device_get(tiny_params)
    params["classifier"] = {
        "kernel": params["classifier"]["kernel"],
        "bias": np.arange(tiny.classes, dtype=np.float32),
    }
    got = models.bind(tiny, params).identity_logits(features)
    expected = features @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_absent_heads_say_how_to_get_them(tiny, tiny_params):
    bare = dataclasses.replace(tiny, classes=0, irr_layers=0)
    towers = {name: tiny_params[name] for name in ("image_tower", "text_tower")}
    model = models.bind(bare, towers)
    with pytest.raises(ValueError, match="classes=0"):
        model.identity_logits(jnp.zeros((1, 64)))
    with pytest.raises(ValueError, match="irr_layers=0"):
        model.masked_logits(
            jnp.zeros((1, 8, 64)),
            jnp.zeros((1, 9, 64)),
            jnp.zeros((1, 8), jnp.int32),
            3,
        )
