# SPDX-License-Identifier: Apache-2.0
"""The table of parts: what derives from it, and that a head is one row of it."""

import dataclasses

import jax
import numpy as np
from flax import nnx

from fmfa_jax import models
from fmfa_jax.models import fmfa
from fmfa_jax.models.layers import Linear


def test_the_groups_of_irra_derive_from_the_table():
    assert models.TOWERS == ("image_tower", "text_tower")
    assert set(models.HEADS) == {"classifier", "irr/head"}
    assert set(models.INTERACTION) == {"irr/cross_attention", "irr/blocks"}


def test_every_field_that_the_table_names_is_in_the_config(tiny):
    whole = dataclasses.replace(tiny, tse_width=128)
    for part in models.PARTS:
        assert part.is_in(whole) and part.name in models.param_shapes(whole)
        for field in (part.blocks, part.switch):
            assert not field or getattr(whole, field) > 0
    depths = {part.name: part.depth(tiny) for part in models.PARTS if part.blocks}
    assert depths == {"image_tower": 3, "text_tower": 2, "irr": 2}


def test_the_towers_alone(tiny, tiny_params):
    bare = models.towers_only(tiny)
    assert bare == dataclasses.replace(tiny, classes=0, irr_layers=0)
    params = models.params_of(bare, tiny_params)
    assert params.keys() == models.param_shapes(bare).keys()


def test_a_new_head_is_one_row(tiny, tiny_params, monkeypatch):
    row = models.Part(
        "selection",
        lambda config: Linear(config.embed_dim, config.classes, std=0.1),
        switch="classes",
    )
    monkeypatch.setattr(fmfa, "PARTS", (*models.PARTS, row))
    model = jax.jit(lambda: nnx.state(models.FMFA(tiny, rngs=nnx.Rngs(0))))
    params = nnx.to_pure_dict(model())
    kernel = params.pop("selection")["kernel"]
    assert 0.05 < kernel.std() < 0.2
    assert jax.tree.structure(params) == jax.tree.structure(tiny_params)
    without = models.FMFA(models.towers_only(tiny), rngs=nnx.Rngs(0))
    assert not hasattr(without, "selection")


def test_models_of_one_size_share_their_encoders(tiny, tiny_params):
    images = np.zeros((2, *tiny.image_size, 3), np.uint8)
    tokens = np.zeros((2, tiny.context_length), np.int32)
    whole = models.Retriever(tiny, tiny_params)
    other = dataclasses.replace(tiny, classes=0)
    params = {name: tiny_params[name] for name in tiny_params if name != "classifier"}
    before = models.image_features._cache_size()
    for retriever in (whole, models.Retriever(other, params)):
        image, text = retriever.forward_tokens(images, tokens)
        np.testing.assert_array_equal(retriever.encode_image(images), image[:, 0])
        np.testing.assert_array_equal(retriever.encode_text(tokens), text[:, 0])
    assert models.image_features._cache_size() == before + 1
    assert whole.report is None


def test_features_keep_the_heads_that_they_need(tiny, tiny_params):
    model = dataclasses.replace(tiny, tse_width=128)
    bare = models.without_training_heads(model)
    assert bare == dataclasses.replace(tiny, classes=0, irr_layers=0, tse_width=128)
    assert models.provided(bare, tiny_params) == models.towers_only(tiny)
