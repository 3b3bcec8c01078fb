# SPDX-License-Identifier: Apache-2.0
"""GELU and QuickGELU: read, assumed aloud, computed and carried by every export."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from fmfa_jax import models, weights
from fmfa_jax.models import layers
from fmfa_jax.models.heads import TokenHead
from fmfa_jax.weights.__main__ import main
from fmfa_jax.weights.native import DIGEST
from tests.tiny_model import TINY

SIZE = {"image_size": (32, 16), "stride": 8}


@pytest.fixture(scope="module")
def gelu_clip(torch_clip):
    """A CLIP that computes GELU where OpenAI's computes QuickGELU, as open_clip's."""
    model = torch_clip.clip()
    for module in model.modules():
        if hasattr(module, "mlp"):
            module.mlp.gelu = nn.GELU()
    return model


@pytest.fixture(scope="module")
def features(gelu_clip, inputs):
    """What torch computes with GELU."""
    with torch.no_grad():
        images, texts = gelu_clip(inputs.pixels, inputs.torch_ids)
    return images[:, 0].numpy(), texts[range(3), inputs.ids.argmax(1)].numpy()


@pytest.fixture(scope="module")
def epoch(tmp_path_factory, gelu_clip):
    """A checkpoint as open_clip's trainer writes it."""
    path = tmp_path_factory.mktemp("open_clip") / "epoch_3.pt"
    state = {f"module.{name}": t for name, t in gelu_clip.state_dict().items()}
    state["module.logit_scale"] = torch.tensor(4.6)
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, path)
    return path


def assert_computes(model, inputs, features):
    for got, wanted in zip(
        (model.encode_image(inputs.images), model.encode_text(inputs.ids)),
        features,
        strict=True,
    ):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


def hub_config(size, **changes):
    model = {
        "embed_dim": size.embed,
        "vision_cfg": {
            "image_size": list(size.image),
            "layers": size.layers,
            "width": size.width,
            "patch_size": size.patch,
        },
        "text_cfg": {
            "context_length": size.context,
            "vocab_size": size.vocab,
            "width": size.text_width,
            "heads": size.text_width // 64,
            "layers": size.text_layers,
        },
    }
    for path, value in changes.items():
        part, _, key = path.rpartition("__")
        (model[part] if part else model)[key] = value
    return {"model_cfg": model, "preprocess_cfg": {}}


@pytest.fixture
def hub(tmp_path, gelu_clip, torch_clip):
    """A folder as on the hub; returns a function that writes its config."""
    path = tmp_path / "open_clip_model.safetensors"
    safetensors.torch.save_file(gelu_clip.state_dict(), path)

    def write(preprocess=None, **changes):
        config = hub_config(torch_clip.size, **changes)
        config["preprocess_cfg"] = preprocess or {}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        return tmp_path

    return write


def test_gelu_is_torchs():
    x = torch.linspace(-6, 6, 1001)
    wanted = nn.GELU()(x).numpy()
    np.testing.assert_allclose(layers.gelu(jnp.asarray(x.numpy())), wanted, atol=1e-6)
    tanh = nn.GELU(approximate="tanh")(x).numpy()
    assert np.abs(tanh - wanted).max() > 1e-4  # the test can tell them apart


def test_a_file_alone_is_assumed_to_be_openais_and_says_so(epoch, inputs, features):
    model = weights.load_model(epoch, **SIZE)
    said = str(model.report)
    assert "activation: quick_gelu, assumed since nothing" in said
    assert "--activation gelu" in said
    with pytest.raises(AssertionError):
        assert_computes(model, inputs, features)


def test_the_activation_asked_for_is_computed(epoch, inputs, features):
    model = weights.load_model(epoch, **SIZE, activation="gelu")
    assert model.config.activation == "gelu"
    assert_computes(model, inputs, features)


@pytest.mark.parametrize("name", ["", "open_clip_model.safetensors"])
def test_a_hub_folder_and_its_file_state_it(hub, name, inputs, features):
    model = weights.load_model(hub() / name)
    assert model.config.image_size == (32, 16)
    assert model.report.activation == "gelu, stated by open_clip_config.json"
    assert_computes(model, inputs, features)


def test_a_hub_folder_can_state_quick_gelu(hub):
    assert weights.stated_activation(hub(quick_gelu=True)) == "quick_gelu"
    assert weights.stated_activation(hub(), "quick_gelu") == "quick_gelu"
    plan = weights.load_params(hub(), activation="quick_gelu")
    assert "although open_clip_config.json states gelu" in plan.report.activation


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"vision_cfg__head_width": 80}, "head_width is 80, expected 64"),
        ({"vision_cfg__timm_model_name": "vit"}, "timm_model_name is vit"),
        ({"vision_cfg__pool_type": "avg"}, "pool_type is avg, expected tok"),
        ({"text_cfg__act_kwargs": {"approximate": "tanh"}}, "act_kwargs"),
        ({"text_cfg__heads": 8}, "text_cfg.heads is 8, expected 1"),
        ({"text_cfg__no_causal_mask": True}, "no_causal_mask is True"),
        ({"embed_dim": 512}, "describes another model: image_tower/projection is 512"),
        ({"vision_cfg__image_size": 10**9}, "is not an open_clip config"),
        ({"vision_cfg__width": [{}]}, "wanted a size of 1 to 8192"),
        ({"preprocess": {"mean": [0.5] * 3}}, r"mean is \[0\.5, 0\.5, 0\.5\]"),
    ],
)
def test_a_hub_folder_of_another_model(hub, change, complaint):
    with pytest.raises(weights.WeightsError, match=complaint):
        weights.load_params(hub(**change))


def test_every_export_carries_it(tmp_path, epoch, inputs, features, capsys):
    native, sizes = tmp_path / "n.safetensors", ["--image-size", "32x16"]
    arguments = ["import", str(epoch), str(native), *sizes, "--activation", "gelu"]
    assert main(arguments) == 0
    assert "activation: gelu, as asked" in capsys.readouterr().out
    assert_computes(weights.load_model(native), inputs, features)
    for to in ("hf", "official"):
        out = tmp_path / to
        assert main(["export", str(native), "--to", to, str(out)]) == 0
        assert_computes(weights.load_model(out, **SIZE), inputs, features)
    assert "the official code has QuickGELU" in capsys.readouterr().out
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["text_config"]["hidden_act"] == "gelu"
    assert config["vision_config"]["hidden_act"] == "gelu"
    with pytest.raises(weights.WeightsError, match="stated by its own config, but the"):
        quick = replace(weights.load_params(native).config, activation="quick_gelu")
        weights.load_params(native, quick)


def test_our_files_from_before_there_was_a_choice(tmp_path, epoch):
    path = tmp_path / "n.safetensors"
    loaded = weights.load_params(epoch, **SIZE)
    weights.save_native(path, loaded.params, loaded.config)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
        arrays = {name: torch.tensor(file.get_tensor(name)) for name in file.keys()}
    config = json.loads(metadata["config"])
    del config["activation"]
    metadata |= {"config": json.dumps(config), "version": "1"}
    del metadata[DIGEST]
    safetensors.torch.save_file(arrays, path, metadata)
    assert weights.load_params(path).config == loaded.config


def test_inspect_says_what_would_load(hub, epoch, capsys):
    assert main(["inspect", str(hub())]) == 0
    text = capsys.readouterr().out
    assert "family   OpenAI or open_clip" in text
    assert "activation gelu, stated by open_clip_config.json" in text
    assert "precision float32 (" in text
    assert "loads    image_tower, text_tower\n" in text
    assert main(["inspect", str(epoch)]) == 0
    text = capsys.readouterr().out
    assert 'prefix   "module." taken off' in text and "assumed" in text
    assert "image size is unknown" in text


def test_heads_keep_quick_gelu():
    config = TINY
    for activation in ("quick_gelu", "gelu"):
        changed = replace(config, irr_layers=1, activation=activation)
        tower = models.fmfa.PARTS[0].build(changed)
        assert tower.blocks.mlp.activation == activation
        irr = models.fmfa.PARTS[2].build(changed)
        assert irr.blocks.mlp.activation == "quick_gelu"
        assert isinstance(irr.head, TokenHead)
    with pytest.raises(ValueError, match="activation must be one of"):
        replace(config, activation="relu")
