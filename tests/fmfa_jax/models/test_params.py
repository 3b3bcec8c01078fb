# SPDX-License-Identifier: Apache-2.0
import copy
import dataclasses

import jax
import numpy as np
import pytest
from flax import traverse_util

from fmfa_jax import models


def flat(params):
    return traverse_util.flatten_dict(jax.device_get(params), sep="/")


def same(one, other):
    return all(np.array_equal(one[path], other[path]) for path in one)


def test_a_seed_fixes_every_number(tiny, tiny_params):
    again = flat(models.init_params(tiny, jax.random.key(0)))
    other = flat(models.init_params(tiny, 1))
    assert same(flat(tiny_params), again)
    assert not same(flat(tiny_params), other)


def test_heads_do_not_change_the_towers(tiny, tiny_params):
    bare = dataclasses.replace(tiny, classes=0, irr_layers=0)
    towers = flat(models.init_params(bare, 0))
    assert {path.split("/")[0] for path in towers} == {"image_tower", "text_tower"}
    assert same(towers, flat(tiny_params))


def test_spread_of_the_initial_values(tiny, tiny_params):
    """CLIP's and IRRA's standard deviations, by parameter."""
    image, text, joint = tiny.image_width, tiny.text_width, tiny.embed_dim
    layers = tiny.image_layers
    irr_out = joint**-0.5 * (2 * tiny.irr_layers) ** -0.5
    expected = {
        "image_tower/position": image**-0.5,
        "image_tower/projection": image**-0.5,
        "image_tower/blocks/attention/qkv/kernel": image**-0.5,
        "image_tower/blocks/attention/out/kernel": (image * 2 * layers) ** -0.5,
        "image_tower/blocks/mlp/up/kernel": (2 * image) ** -0.5,
        "image_tower/blocks/mlp/down/kernel": (image * 2 * layers) ** -0.5,
        "text_tower/embedding": 0.02,
        "text_tower/position": 0.01,
        "text_tower/projection": text**-0.5,
        "irr/cross_attention/qkv/kernel": joint**-0.5,
        "irr/cross_attention/out/kernel": irr_out,
        "irr/blocks/mlp/down/kernel": irr_out,
        "irr/head/dense/kernel": (2 * joint) ** -0.5,
        "irr/head/fc/kernel": irr_out,
        "classifier/kernel": 0.001,
    }
    params = flat(tiny_params)
    for path, std in expected.items():
        np.testing.assert_allclose(params[path].std(), std, rtol=0.15, err_msg=path)
    for path, value in params.items():
        if path.endswith("bias"):
            assert not value.any(), path
        elif path.endswith("scale"):
            assert (value == 1).all(), path


def test_parameters_are_float32_whatever_the_towers_compute_in(tiny):
    half = dataclasses.replace(tiny, dtype="bfloat16")
    dtypes = {x.dtype for x in jax.tree.leaves(models.param_shapes(half))}
    assert dtypes == {np.dtype("float32")}


def test_binding_names_every_parameter_that_does_not_fit(tiny, tiny_params):
    params = copy.deepcopy(jax.device_get(tiny_params))
    del params["text_tower"]["embedding"]
    params["image_tower"]["extra"] = np.zeros(3)
    params["classifier"]["kernel"] = np.zeros((64, 9))
    with pytest.raises(ValueError) as error:
        models.bind(tiny, params)
    for part in ("text_tower/embedding", "image_tower/extra", r"(64, 5), got (64, 9)"):
        assert part in str(error.value)
