# SPDX-License-Identifier: Apache-2.0
"""RDE's checkpoints, with their misspelt names and idle layers, in and out."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from flax.traverse_util import flatten_dict

from fmfa_jax import models, weights
from fmfa_jax.models.selection import select_patches
from fmfa_jax.weights.__main__ import main
from tests.reference_case import group, reference_arrays

flatten = functools.partial(flatten_dict, sep="/")
SIZE = {"image_size": (32, 16), "stride": 8}
# What the code makes and never calls, and counts.
IDLE = {
    *(f"visul_emb_layer.linear.{n}" for n in ("weight", "bias")),
    *(
        f"{head}_emb_layer.mlp.bns.1.{n}"
        for head in ("visul", "texual")
        for n in ("weight", "bias", "running_mean", "running_var")
    ),
    *(
        f"{head}_emb_layer.mlp.bns.{i}.num_batches_tracked"
        for head in ("visul", "texual")
        for i in (0, 1)
    ),
}


@pytest.fixture(scope="module")
def theirs(torch_clip):
    return torch_clip.rde()


@pytest.fixture(scope="module")
def file(tmp_path_factory, theirs):
    """Its best.pth."""
    path = tmp_path_factory.mktemp("rde") / "best.pth"
    beside = {"optimizer": {"state": {}}, "scheduler": {"last_epoch": 3}}
    beside |= {"num_epoch": 60, "iteration": 9, "epoch": 3}
    torch.save({"model": theirs.state_dict()} | beside, path)
    return path


@pytest.fixture(scope="module")
def loaded(file):
    return weights.load_params(file, **SIZE)


def test_it_is_recognised_and_idle_layers_are_named(loaded, torch_clip):
    assert loaded.report.family == "RDE (official)"
    assert loaded.config.tse_width == torch_clip.size.tse
    assert not loaded.report.newly_initialised
    ignored = {line.split(":")[0] for line in loaded.report.ignored}
    assert ignored >= IDLE
    assert not any("emb_layer" in name for name in ignored - IDLE)


@pytest.mark.parametrize(
    ("side", "layer"), [("image", "visul_emb_layer"), ("text", "texual_emb_layer")]
)
def test_heads_compute_as_their_modules(loaded, theirs, side, layer):
    tokens = np.random.default_rng(1).normal(size=(3, 5, 64)).astype(np.float32)
    # All but the first token; their order does not matter to the maximum.
    selected = select_patches(jnp.asarray(tokens), jnp.ones((3, 5)), ratio=1.0)
    head = getattr(models.bind(loaded.config, loaded.params).tse, side)
    got = head(selected).features
    unit = tokens[:, 1:] / np.linalg.norm(tokens[:, 1:], axis=-1, keepdims=True)
    with torch.no_grad():
        wanted = getattr(theirs, layer)(torch.tensor(unit))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


def test_out_again_it_loads_strictly_and_is_bit_equal(
    tmp_path, loaded, theirs, torch_clip
):
    path = weights.export_official(tmp_path / "out.safetensors", loaded.params)
    back = safetensors.torch.load_file(path)
    torch_clip.rde().load_state_dict(back, strict=True)
    for name, tensor in theirs.state_dict().items():
        if name not in IDLE:
            assert torch.equal(back[name], tensor), name
    again = weights.load_params(path, **SIZE)
    assert again.report.family == "RDE (official)"
    wanted = flatten(loaded.params)
    for name, value in flatten(again.params).items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)


def test_the_reference_file_in_and_out(tmp_path):
    """All parameters of the official code, as it names them (rde.npz)."""
    arrays = reference_arrays("rde")
    official = group(arrays, "param")
    tensors = {name: torch.tensor(value) for name, value in official.items()}
    torch.save({"model": tensors}, tmp_path / "best.pth")
    loaded = weights.load_params(
        tmp_path / "best.pth", image_size=(96, 48), stride=16, source_grid=(6, 3)
    )
    assert loaded.config.tse_width == 256
    path = weights.export_official(tmp_path / "out.safetensors", loaded.params)
    back = safetensors.torch.load_file(path)
    assert back.keys() == official.keys()
    for name in official.keys() - IDLE:
        np.testing.assert_array_equal(back[name], official[name], err_msg=name)


def test_a_model_without_the_head_leaves_it_out_by_name(file, loaded):
    config = models.towers_only(loaded.config)
    report = weights.load_params(file, config).report
    assert not any("tse" in path for path in report.loaded)
    assert "visul_emb_layer.fc.weight: the model has no tse" in report.ignored


def test_hugging_face_gets_the_towers_and_is_told(tmp_path, file, capsys):
    size = ["--image-size", "32x16", "--stride", "8"]
    out = str(tmp_path / "hf")
    assert main(["export", str(file), "--to", "hf", out, *size]) == 0
    said = capsys.readouterr().out
    assert "left out: tse/image/skip/kernel" in said
    assert "note: these are the towers alone" in said
    assert weights.load_params(out).config.tse_width == 0
