# SPDX-License-Identifier: Apache-2.0
"""Weights in whatever dress: wrappers, prefixes, objects, other families, damage."""

import argparse
import collections
import datetime
import enum
import gzip
import io
import pathlib
import sys
import tarfile
import types

import numpy as np
import pytest
import safetensors.torch
import torch

from fmfa_jax import weights
from fmfa_jax.weights.__main__ import main

SIZE = {"image_size": (32, 16), "stride": 8}


@pytest.fixture(scope="module")
def towers(torch_clip):
    """The state dict of a CLIP under OpenAI's names."""
    return torch_clip.clip().state_dict()


@pytest.fixture(scope="module")
def wanted(tmp_path_factory, towers):
    path = tmp_path_factory.mktemp("plain") / "m.pth"
    torch.save(towers, path)
    return weights.load_params(path, **SIZE).params


def load(tmp_path, content, **options):
    torch.save(content, tmp_path / "m.pth")
    return weights.load_params(tmp_path / "m.pth", **SIZE, **options)


def refusal(tmp_path, content, **options):
    with pytest.raises(weights.WeightsError) as error:
        load(tmp_path, content, **options)
    return str(error.value)


def assert_loads(loaded, wanted):
    for tower, name in (("image_tower", "class_token"), ("text_tower", "embedding")):
        got = loaded.params[tower][name]
        np.testing.assert_array_equal(got, wanted[tower][name])


# Wrappers


@pytest.mark.parametrize(
    "wrapper",
    ["model_state_dict", "net", "model_ema", "params", "generator.weights"],
)
def test_a_wrapper_of_any_name_is_found_and_said(tmp_path, towers, wanted, wrapper):
    content = towers
    for name in reversed(wrapper.split(".")):
        content = {name: content}
    content |= {"loss": torch.tensor(0.1), "rng": {"cpu": torch.get_rng_state()}}
    loaded = load(tmp_path, content)
    assert_loads(loaded, wanted)
    assert f"note: taken: {wrapper}" in str(loaded.report)
    assert {"loss: not a weight", "rng: not a weight"} <= set(loaded.report.ignored)


def test_of_a_model_and_its_average_the_model_is_taken_or_the_key(
    tmp_path, towers, wanted
):
    average = {name: tensor + 1 for name, tensor in towers.items()}
    both = {"state_dict": towers, "state_dict_ema": average, "epoch": 3}
    loaded = load(tmp_path, both)
    assert_loads(loaded, wanted)
    assert "weights are also under state_dict_ema" in str(loaded.report)
    assert "state_dict_ema: weights of another model" in loaded.report.ignored
    other = load(tmp_path, both, key="state_dict_ema")
    token = wanted["image_tower"]["class_token"]
    np.testing.assert_array_equal(other.params["image_tower"]["class_token"], token + 1)
    assert "taken: state_dict_ema, as asked" in str(other.report)
    text = refusal(tmp_path, both, key="ema")
    assert "'ema'" in text and "state_dict_ema" in text


def test_several_models_are_named_and_one_is_chosen(tmp_path, towers, wanted):
    other = {name: tensor + 1 for name, tensor in towers.items()}
    both = {"model": towers, "state_dict": other}
    text = refusal(tmp_path, both)
    assert "it holds model, state_dict; choose one" in text and "--key NAME" in text
    assert_loads(load(tmp_path, both, key="model"), wanted)


# Prefixes


@pytest.mark.parametrize(
    "prefix",
    [
        *("_orig_mod.", "module.", "module.module.", "module._orig_mod."),
        *("model.", "clip.", "clip_model.", "model.clip.", "_forward_module.model."),
    ],
)
def test_a_common_prefix_is_taken_off_and_said(tmp_path, towers, wanted, prefix):
    loaded = load(tmp_path, {prefix + name: t for name, t in towers.items()})
    assert_loads(loaded, wanted)
    assert "taken off" in str(loaded.report)


def test_wrappers_within_names_are_taken_off(tmp_path, towers, wanted):
    inner = {n.replace("visual.", "visual._orig_mod."): t for n, t in towers.items()}
    assert_loads(load(tmp_path, inner), wanted)


def test_what_lies_beside_the_prefix_is_listed(tmp_path, towers, wanted):
    state = {f"model.{name}": tensor for name, tensor in towers.items()}
    state |= {"criterion.queue": torch.ones(3), "classifier.weight": torch.ones(5, 64)}
    state["classifier.bias"] = torch.ones(5)
    loaded = load(tmp_path, {"state_dict": state})
    assert_loads(loaded, wanted)
    assert "criterion.queue: not under model." in loaded.report.ignored
    assert loaded.config.classes == 5


def test_of_two_prefixed_models_one_is_chosen(tmp_path, towers, wanted):
    student = {f"student.{name}": tensor for name, tensor in towers.items()}
    other = {f"second.{name}": tensor + 1 for name, tensor in towers.items()}
    teacher = {f"teacher.{name}": tensor + 1 for name, tensor in towers.items()}
    assert_loads(load(tmp_path, student | teacher), wanted)
    text = refusal(tmp_path, student | other)
    assert "it holds student, second; choose one: " in text
    assert_loads(load(tmp_path, student | other, key="student"), wanted)


# Objects beside the weights


def stranger(monkeypatch, module, name, base=object, **body):
    """A class of a package that is not installed when the file is read."""
    made = type(name, (base,), {"__module__": module, **body})
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        whole = ".".join(parts[:end])
        if whole not in sys.modules:
            monkeypatch.setitem(sys.modules, whole, types.ModuleType(whole))
    monkeypatch.setattr(sys.modules[module], name, made, raising=False)
    return made


class Split(enum.Enum):
    TRAIN = "train"


def objects(monkeypatch):
    easy = stranger(monkeypatch, "easydict", "EasyDict", dict)
    node = stranger(monkeypatch, "yacs.config", "CfgNode", dict)(lr=1.0)
    node.__dict__["__immutable__"] = True
    ours = stranger(monkeypatch, "utils.options", "Options")()
    ours.lr = easy(x=1)
    ordered = stranger(monkeypatch, "mmcv.utils", "ConfigDict", collections.OrderedDict)
    return {
        "argparse.Namespace": argparse.Namespace(lr=1e-5, size=(64, 32)),
        "easydict.EasyDict": easy(lr=1.0, model=easy(name="x")),
        "yacs.config.CfgNode": node,
        "utils.options.Options": ours,
        "mmcv.utils.ConfigDict": ordered(a=1),
        "pathlib": pathlib.PosixPath("/x"),
        "numpy": np.float64(73.1),
        "numpy ": np.arange(5.0),
        "collections.defaultdict": collections.defaultdict(int, a=1),
        "types.SimpleNamespace": types.SimpleNamespace(a=1),
        "datetime.timedelta": datetime.timedelta(seconds=3),
        "Split": Split.TRAIN,
        "torch.nn": torch.nn.Linear(2, 2),
    }


@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_beside_the_weights_are_inert_and_listed(
    tmp_path, towers, wanted, monkeypatch, protocol
):
    beside = objects(monkeypatch)
    content = {"model": towers} | {f"o{i}": o for i, o in enumerate(beside.values())}
    path = tmp_path / "m.pth"
    torch.save(content, path, pickle_protocol=protocol)
    monkeypatch.undo()  # their classes are gone
    loaded = weights.load_params(path, **SIZE)
    assert_loads(loaded, wanted)
    ignored = dict(row.split(": ", 1) for row in loaded.report.ignored)
    for place, kind in enumerate(beside):
        assert kind.strip() in ignored[f"o{place}"], kind
        assert ignored[f"o{place}"].endswith(", not read")


def test_a_state_dict_in_a_dict_of_another_class(tmp_path, towers, wanted, monkeypatch):
    cls = stranger(monkeypatch, "their.code", "State", collections.OrderedDict)
    assert_loads(load(tmp_path, {"model": cls(towers)}), wanted)


def test_a_whole_model_stays_refused(tmp_path, monkeypatch):
    cls = stranger(monkeypatch, "model.build", "IRRA", torch.nn.Module)
    torch.save(cls(), tmp_path / "m.pth")
    text = r"whole object, which asks for model\.build\.IRRA.*state_dict"
    with pytest.raises(weights.WeightsError, match=text):
        weights.load_params(tmp_path / "m.pth")


# Families


def renamed(towers, *pairs):
    state = {}
    for name, tensor in towers.items():
        for old, new in pairs:
            name = new + name.removeprefix(old) if name.startswith(old) else name
        state[name] = tensor
    return state


TEXT = ("token_", "positional_", "transformer.", "ln_final", "text_projection")


def test_a_text_tower_of_its_own(tmp_path, towers, wanted):
    state = renamed(towers, *((name, f"text.{name}") for name in TEXT))
    extra = {"logit_scale": torch.ones([]), "logit_bias": torch.ones([])}
    loaded = load(tmp_path, {"state_dict": state | extra})
    assert_loads(loaded, wanted)
    assert loaded.report.family == "open_clip with text.*"


@pytest.mark.parametrize(
    ("change", "family"),
    [
        (("visual.", "visual.trunk."), r"timm \(visual\.trunk\.\*\), as SigLIP has"),
        (("visual.conv1", "visual.attnpool"), "CLIP with a ResNet image tower"),
        (("transformer.", "text.transformer.encoder."), "text tower of Hugging Face"),
        (("visual.", "visual.blocks."), "EVA-CLIP"),
        (("token_embedding", "bert.embeddings"), "Chinese-CLIP"),
        (("visual.", "visual_encoder."), "ALBEF or BLIP"),
    ],
)
def test_another_family_is_named_in_one_line(tmp_path, towers, change, family):
    own = renamed(towers, *((name, f"text.{name}") for name in TEXT))
    with pytest.raises(weights.WeightsError, match=f"this is .*{family}") as error:
        load(tmp_path, renamed(towers, change))
    assert "\n" not in str(error.value)
    if change[0] == "visual.":
        with pytest.raises(weights.WeightsError, match=f"this is .*{family}"):
            load(tmp_path, renamed(own, change))


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["vision_model.head.probe", "text_model.head.weight"], "SigLIP"),
        (["vision_model.post_layernorm.weight"], "image tower of a Hugging Face CLIP"),
        (["text_model.final_layer_norm.bias"], "text tower of a Hugging Face CLIP"),
        (["blocks.0.attn.qkv.weight", "cls_token"], "a vision transformer alone"),
        (["layer1.0.conv1.weight", "bn1.weight"], "a ResNet alone"),
        (["model.layers.0.self_attn.q_proj.weight"], "a language model"),
        (["base_model.model.q.lora_A.weight"], "a LoRA adapter"),
        (["w", "b"], "no family that is read here.* begin with w, b"),
    ],
)
def test_so_is_what_is_no_clip(tmp_path, names, what):
    state = {name: torch.ones(2) for name in names}
    with pytest.raises(weights.WeightsError, match=what) as error:
        load(tmp_path, state)
    assert "\n" not in str(error.value)


def test_an_error_begins_with_the_family_and_lists_twenty_names(
    tmp_path, official_state
):
    state = {f"{name}_": tensor for name, tensor in official_state.items()}
    state["base_model.visual.proj"] = torch.ones(128, 64)
    first, *rows = refusal(tmp_path, state).splitlines()
    assert first.startswith("IRRA or FMFA (official) weights: ")
    assert len(rows) == 21
    _, count, word = rows[-1].rsplit(maxsplit=2)
    assert word == "more" and int(count) > len(official_state) - 20


def test_heads_of_open_clip_that_are_wider_than_ours(tmp_path, towers):
    state = dict(towers)
    state["visual.positional_embedding"] = torch.zeros(9, 1280)
    assert "heads of 80, not 64" in refusal(tmp_path, state)


# Files that are something else


def damaged(folder):
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    np.savez(folder / "m.npz", kernel=np.zeros(3))
    return {
        "Git LFS pointer.*git lfs pull": lfs,
        "a web page": b"<!DOCTYPE html><html>Virus scan warning</html>",
        "a web page, ": b"\n<?xml version='1.0'?><Error><Code>AccessDenied</Code>",
        "compressed with gzip.*gunzip": gzip.compress(b"PK"),
        "is empty: download it again": b"",
        "begins with zeros": bytes(5000),
        "a tar archive": stream.getvalue(),
        "an HDF5 file": b"\x89HDF\r\n\x1a\n",
        "JSON text": b'{"error": "Repository not found"}',
        r"NumPy's \.npz": (folder / "m.npz").read_bytes(),
        "neither a PyTorch zip": b"these are not the weights",
    }


def test_a_file_that_is_something_else_is_named(tmp_path):
    for what, content in damaged(tmp_path).items():
        (tmp_path / "m.pt").write_bytes(content)
        with pytest.raises(weights.WeightsError, match=rf"m\.pt.*{what}"):
            weights.load_params(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("gs://b/m.pt", "download it, and name the local file"),
        ("ViT-B/16", "or hf://ORG/NAME for one on the Hugging Face Hub"),
        ("openai/clip-vit-base", "or hf://ORG/NAME for one on the Hugging Face Hub"),
    ],
)
def test_a_name_is_no_file(name, advice):
    with pytest.raises(weights.WeightsError, match=advice):
        weights.load_params(name)


# What cannot be written


def test_outputs_that_cannot_be_written(tmp_path, towers, capsys, monkeypatch):
    source = tmp_path / "m.safetensors"
    safetensors.torch.save_file(towers, source)
    sizes = ["--image-size", "32x16", "--stride", "8"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    for arguments in (
        ["import", source, tmp_path / "folder"],
        ["import", source, tmp_path / "file" / "x.safetensors"],
        ["export", source, "--to", "official", tmp_path / "folder"],
        ["export", source, "--to", "official", tmp_path / "file" / "below" / "x"],
        ["export", source, "--to", "hf", tmp_path / "file"],
        ["export", source, "--to", "hf", tmp_path / "file" / "hf"],
    ):
        assert main([*map(str, arguments), *sizes]) == 2
        text = capsys.readouterr().err
        assert text.startswith("error: cannot write ") and text.count("\n") == 1, text
        assert "unfinished" not in text
        assert sorted(tmp_path.rglob("*")) == before

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fmfa_jax.weights.native._header", full)
    for out in (["import", "new.safetensors"], ["export", "new", "--to", "hf"]):
        command, name, *rest = out
        arguments = [command, str(source), str(tmp_path / name), *rest, *sizes]
        assert main(arguments) == 2
        assert "No space left on device" in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before
