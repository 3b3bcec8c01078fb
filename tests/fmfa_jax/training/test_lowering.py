# SPDX-License-Identifier: Apache-2.0
"""Every preset's whole step lowers for every accelerator, on a host without any.

Only the questions that JAX itself asks of NVIDIA's hardware are answered here. Towers
have one block, which is all that the loop over blocks ever contains.
"""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as questions

from configs import cuhk, demo
from data_pipeline.records import Pair, Picture, Split
from fmfa_jax import models
from fmfa_jax.evaluation.ranks import _count_products
from fmfa_jax.machines.mesh import make_mesh, replicated
from fmfa_jax.methods import Task
from fmfa_jax.methods.weak.memory import init_bank
from fmfa_jax.methods.weak.mining import mine
from fmfa_jax.training import settings as door
from fmfa_jax.training.optimizer import make_optimizer
from fmfa_jax.training.step import make_state, make_step

DEVICES = {
    "cuda": SimpleNamespace(
        platform="gpu", device_kind="NVIDIA H100", compute_capability="9.0"
    ),
    "rocm": SimpleNamespace(
        platform="gpu", device_kind="AMD MI250", compute_capability="gfx90a"
    ),
    "tpu": SimpleNamespace(platform="tpu", device_kind="TPU v5e"),
}
PERSONS = 16
SPLIT = Split(
    "train",
    tuple(Picture("", "", person) for person in range(PERSONS)),
    tuple(Pair(image, "a man") for image in range(PERSONS)),
)
SMALL = {"image_layers": 1, "text_layers": 1}
LARGE = {"model.preset": "vit-l-14", "model.image_size": (336, 336)}


@pytest.fixture(autouse=True)
def hopper(monkeypatch):
    """What JAX asks of an NVIDIA card before it takes cuDNN's attention."""
    monkeypatch.setattr(questions, "check_cudnn_version", lambda: 90800)
    monkeypatch.setattr(questions, "check_compute_capability", lambda wanted: True)
    monkeypatch.setattr(
        questions, "is_cuda_compute_capability_equal", lambda wanted: False
    )


def whole_step(config, platform, *, length=None):
    """The traced step of a config on a device, from shapes alone."""
    settings, mesh = door.read(config), make_mesh(devices=jax.devices()[:1])
    sized = settings.model.sized(DEVICES[platform], vocab_size=49408, classes=PERSONS)
    model = replace(
        settings.learns.sized(settings.recipe, sized),
        **SMALL,
        irr_layers=min(sized.irr_layers, 1),
    )
    batch_size = settings.train.batch_size
    task = Task(model, mesh, SPLIT, settings.data.name, batch_size, 10)
    method = settings.learns.for_task(settings.recipe, task)
    optimizer = make_optimizer(
        lambda step: 1e-4, settings.optimizer, own_group=method.parameter_group
    )
    state = jax.eval_shape(
        lambda params: make_state(params, optimizer, mesh, method),
        models.param_shapes(model),
    )
    shapes = {
        "image": ((*model.image_size, 3), np.uint8),
        "tokens": ((length or model.context_length,), np.int32),
    }
    batch = {
        name: placed(mesh, (batch_size, *shapes.get(name, ((), 0))[0]), dtype)
        for name in method.batch_keys
        for dtype in (shapes.get(name, ((), np.int32))[1],)
    }
    state = jax.tree.map(lambda x: placed(mesh, x.shape, x.dtype), state)
    step = make_step(
        method, optimizer, state, mesh=mesh, seed=0, schedule=lambda step: 1e-4
    )
    return model, step.trace(state, batch)


def placed(mesh, shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))


def configured(shipped, preset, **changes):
    config = shipped.get_config(preset).copy_and_resolve_references()
    with config.unlocked():
        config.train.batch_size = 8
        config.update_from_flattened_dict(changes)
    return config


CASES = {
    "official": (cuhk, "official", {}, None),
    "paper": (cuhk, "paper", {}, None),
    "repaired, in a bucket": (cuhk, "repaired", {}, 48),
    "weak": (cuhk, "weak", {}, None),
    "weak-plus, in a bucket": (cuhk, "weak-plus", {}, 32),
    "ViT-L/14 at 336": (cuhk, "official", LARGE, None),
    "rde": (cuhk, "rde", {}, None),
    "demo": (demo, "plus", {}, None),
}


OTHERS = ("rocm", "tpu")  # which compute alike: one program serves both


@pytest.mark.parametrize("case", CASES)
def test_a_step_in_bfloat16_lowers(case):
    shipped, preset, changes, length = CASES[case]
    config = configured(shipped, preset, **changes)
    model, traced = whole_step(config, "cuda", length=length)
    assert (model.dtype, model.attention) == ("bfloat16", "cudnn")
    assert model.platform == "gpu"
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmaxBackward" in program
    model, traced = whole_step(config, "tpu", length=length)
    assert (model.dtype, model.attention) == ("bfloat16", "xla")
    assert "bf16" in traced.lower(lowering_platforms=OTHERS).as_text()


@pytest.mark.parametrize("case", ["official", "repaired, in a bucket", "weak", "rde"])
def test_a_step_in_float32_lowers_with_products_of_float32(case):
    shipped, preset, changes, length = CASES[case]
    config = configured(shipped, preset, **changes, **{"model.dtype": "float32"})
    model, traced = whole_step(config, "cuda", length=length)
    assert model.attention == "xla"
    for platform in DEVICES:
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        products = [line for line in program.splitlines() if "dot_general" in line]
        assert products
        # XLA's default would be TF32 on an NVIDIA card, bfloat16 on a TPU.
        assert [x for x in products if "precision = [HIGHEST, HIGHEST]" not in x] == []


def shaped(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def test_encoders_for_evaluation_and_search_lower():
    model = replace(models.PRESETS["vit-b-16"], **SMALL)
    params = shaped(models.param_shapes(model))
    images = jax.ShapeDtypeStruct((2, *model.image_size, 3), jnp.uint8)
    ids = jax.ShapeDtypeStruct((2, model.context_length), jnp.int32)
    fast = replace(model, dtype="bfloat16", attention="cudnn", products="compute")
    for platform in DEVICES:
        for config in (model, fast) if platform == "cuda" else (model,):
            for encode, rows in (
                (models.image_features, images),
                (models.text_features, ids),
            ):
                traced = encode.trace(config, params, rows)
                program = traced.lower(lowering_platforms=(platform,)).as_text()
                assert ("__cudnn$fmha" in program) == (config is fast)


def test_ranking_lowers():
    shapes = (
        jax.ShapeDtypeStruct((8, 64), jnp.float32),
        jax.ShapeDtypeStruct((4, 8), jnp.int32),
        jax.ShapeDtypeStruct((4, 8), jnp.bool_),
        jax.ShapeDtypeStruct((2, 32, 64), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    traced = _count_products.trace(*shapes, mesh=None)
    for platform in DEVICES:
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "precision = [HIGHEST, HIGHEST]" in program


def test_mining_lowers():
    bank = shaped(init_bank(40, 64))
    image = jax.ShapeDtypeStruct((8, 64), jnp.float32)
    index = jax.ShapeDtypeStruct((8,), jnp.int32)
    traced = jax.jit(mine).trace(bank, image, index)
    for platform in DEVICES:
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "precision = [HIGHEST, HIGHEST]" in program
