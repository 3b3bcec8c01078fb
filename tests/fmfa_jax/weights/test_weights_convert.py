# SPDX-License-Identifier: Apache-2.0
"""Official and OpenAI files: features equal to torch's, and every refusal."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

from fmfa_jax import models, weights

flatten = functools.partial(flatten_dict, sep="/")
unflatten = functools.partial(unflatten_dict, sep="/")
REFERENCE = Path(__file__).parents[2] / "reference" / "fmfa.npz"
HEADS = {"classifier", "irr"}
SIZE = {"image_size": (32, 16), "stride": 8}


@pytest.fixture(scope="module")
def file(tmp_path_factory, official_state):
    """One official checkpoint, as FMFA saves it."""
    path = tmp_path_factory.mktemp("official") / "best.pth"
    named = {f"module.{name}": tensor for name, tensor in official_state.items()}
    torch.save({"model": named, "optimizer": {"state": {}}, "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def loaded(file):
    return weights.load_params(file, **SIZE)


def assert_equal_trees(got, wanted):
    got, wanted = flatten(got), flatten(wanted)
    assert got.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_array_equal(got[path], wanted[path], err_msg=path)


def save(path, state):
    torch.save(state, path)
    return path


def drawn_params(config):
    rng = np.random.default_rng(5)
    shapes = flatten(models.param_shapes(config))
    return unflatten({k: rng.normal(size=v.shape) for k, v in shapes.items()})


def refusal(path, config=None, **options):
    with pytest.raises(weights.WeightsError) as error:
        weights.load_params(path, config, **(options if config else SIZE | options))
    return str(error.value)


def test_features_of_the_official_module(torch_clip, inputs, file):
    model = weights.load_model(file, **SIZE)
    with torch.no_grad():
        images, texts = torch_clip.official().base_model(
            inputs.pixels, inputs.torch_ids
        )
    got_images, got_texts = model.forward_tokens(inputs.images, inputs.ids)
    np.testing.assert_allclose(got_images, images, rtol=0, atol=2e-5)
    np.testing.assert_allclose(got_texts, texts, rtol=0, atol=2e-5)
    last = inputs.ids.argmax(1)
    text_globals = texts[range(len(last)), last]
    got = model.encode_image(inputs.images)
    np.testing.assert_allclose(got, images[:, 0], rtol=0, atol=2e-5)
    got = model.encode_text(inputs.ids)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, text_globals, rtol=0, atol=2e-5)
    with pytest.raises(
        ValueError, match=r"\(height, width\) \(32, 16\), got \(16, 32\)"
    ):
        model.encode_image(inputs.images.transpose(0, 2, 1, 3))
    with pytest.raises(ValueError, match="10 tokens, got 9"):
        model.encode_text(inputs.ids[:, :9])


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("half", ["half", "single"])
def test_features_of_an_openai_archive(tmp_path, torch_clip, inputs, half):
    # A square grid of 4 x 4, to be resized to 4 x 2.
    square = torch_clip.clip(replace_image(torch_clip.size, (32, 32)), extras=True)
    pixels = torch.zeros(1, 3, 32, 32)
    traced = torch.jit.trace(square, (pixels, inputs.torch_ids[:1]))
    if half == "half":
        traced = traced.half()
    torch.jit.save(traced, tmp_path / "ViT.pt")
    model = weights.load_model(tmp_path / "ViT.pt", **SIZE)
    assert model.report.resized == ("image_tower/position: 4x4 patches -> 4x2 patches",)
    ignored = {entry.split(":")[0] for entry in model.report.ignored}
    names = {"logit_scale", "input_resolution", "context_length", "vocab_size"}
    assert ignored == names

    wanted = torch_clip.clip()
    state = {k: v.float() for k, v in traced.state_dict().items() if k not in names}
    grid = state["visual.positional_embedding"]
    rows = torch.nn.functional.interpolate(
        grid[1:].T.reshape(1, -1, 4, 4), (4, 2), mode="bilinear", align_corners=False
    )
    rows = rows.flatten(2)[0].T
    state["visual.positional_embedding"] = torch.cat([grid[:1], rows])
    wanted.load_state_dict(state)
    with torch.no_grad():
        images, texts = wanted(inputs.pixels, inputs.torch_ids)
    got = model.forward_tokens(inputs.images, inputs.ids)
    np.testing.assert_allclose(got[0], images, rtol=0, atol=2e-5)
    np.testing.assert_allclose(got[1], texts, rtol=0, atol=2e-5)


def replace_image(size, image):
    return type(size)(**{**vars(size), "image": image})


def test_sizes_come_from_the_tensors(loaded, torch_clip):
    size = torch_clip.size
    assert loaded.config == models.ModelConfig(
        image_size=size.image,
        patch=size.patch,
        stride=size.stride,
        image_width=size.width,
        image_layers=size.layers,
        context_length=size.context,
        vocab_size=size.vocab,
        text_width=size.text_width,
        text_layers=size.text_layers,
        embed_dim=size.embed,
        classes=size.classes,
        irr_layers=size.irr_layers,
    )
    report = loaded.report
    assert set(report.loaded) == flatten(models.param_shapes(loaded.config)).keys()
    assert not report.newly_initialised and not report.resized
    assert report.ignored == ("optimizer: not a weight", "epoch: not a weight")
    assert report.sha256 == weights.sha256(report.source)
    assert json.loads(json.dumps(report.as_dict()))["sha256"] == report.sha256


@pytest.mark.parametrize("form", ["plain", "state_dict", "safetensors", "mixed"])
def test_every_wrapping_gives_the_same(tmp_path, official_state, loaded, form):
    path = tmp_path / "m.pth"
    if form == "plain":
        torch.save(official_state, path)
    elif form == "state_dict":
        torch.save({"state_dict": official_state}, path)
    elif form == "mixed":
        # Some names with the prefix, some without: none of them is dropped.
        half = set(list(official_state)[::2])
        torch.save(
            {f"module.{k}" if k in half else k: v for k, v in official_state.items()},
            path,
        )
    else:
        safetensors.torch.save_file(official_state, path)
    assert_equal_trees(weights.load_params(path, **SIZE).params, loaded.params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, official_state, dtype):
    cast = {name: tensor.to(dtype) for name, tensor in official_state.items()}
    got = weights.load_params(save(tmp_path / "m.pth", cast), **SIZE).params
    back = {name: tensor.float() for name, tensor in cast.items()}
    wanted = weights.load_params(save(tmp_path / "w.pth", back), **SIZE).params
    assert_equal_trees(got, wanted)
    assert all(leaf.dtype == np.float32 for leaf in flatten(got).values())


def test_the_official_reference_checkpoint(tmp_path):
    with np.load(REFERENCE) as file:
        state = {
            k.removeprefix("param/"): torch.tensor(file[k])
            for k in file
            if k.startswith("param/")
        }
        path = save(tmp_path / "m.pth", state)
        model = weights.load_model(path, image_size=(96, 48), stride=16)
        assert model.config.classes == 9 and model.config.irr_layers == 2
        got = model.forward_tokens(file["in/images"], file["in/caption_ids"])
        np.testing.assert_allclose(got[0], file["out/image_tokens"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(got[1], file["out/text_tokens"], rtol=0, atol=1e-5)
        weights.export_official(tmp_path / "out.safetensors", model.params)
        back = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor.float()), name


# What is missing, over, or of another shape


def test_one_error_lists_everything(tmp_path, official_state, loaded):
    state = dict(official_state)
    state["base_model.visual.projector"] = state.pop("base_model.visual.proj")
    del state["base_model.transformer.resblocks.1.ln_1.bias"]
    state["base_model.ln_final.weight"] = torch.ones(63)
    state["cross_attn.in_proj_weight"] = torch.ones(64, 192)
    state["base_model.text_projection"] = torch.ones(64, 64).long()
    text = refusal(save(tmp_path / "m.pth", state), loaded.config)
    assert set(text.splitlines()[1:]) == {
        "  missing: base_model.visual.proj",
        "  missing: base_model.transformer.resblocks.1.ln_1.bias",
        "  surplus: base_model.visual.projector",
        "  does not fit: base_model.ln_final.weight has shape (63,), expected (64,)",
        "  does not fit: cross_attn.in_proj_weight has shape (64, 192), "
        "expected (192, 64)",
        "  does not fit: base_model.text_projection holds int64, expected a "
        "floating-point type",
    }
    inferred = refusal(tmp_path / "m.pth")
    assert "missing: base_model.visual.proj" in inferred
    assert "surplus: base_model.visual.projector" in inferred
    assert "no usable image_tower/projection" in inferred


def test_no_name_can_go_unnoticed(tmp_path, official_state, loaded):
    for name, tensor in official_state.items():
        state = {k: v for k, v in official_state.items() if k != name}
        text = refusal(
            save(tmp_path / "m.pth", {**state, name + "_": tensor}), loaded.config
        )
        assert text.splitlines()[1:] == [f"  missing: {name}", f"  surplus: {name}_"]


def test_no_shape_can_go_unnoticed(tmp_path, official_state, loaded):
    every = list(official_state)
    for start in range(0, len(every), 20):  # as many as an error lists
        names = every[start : start + 20]
        wider = {
            name: torch.zeros(*shape[:-1], shape[-1] + 1)
            for name in names
            for shape in (official_state[name].shape,)
        }
        path = save(tmp_path / "m.pth", {**official_state, **wider})
        text = refusal(path, loaded.config)
        named = [line.split()[3] for line in text.splitlines()[1:]]
        assert sorted(named) == sorted(names)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image_layers": 1}, "surplus: base_model.visual.transformer.resblocks.1.mlp"),
        ({"image_layers": 3}, "missing: base_model.visual.transformer.resblocks.2.mlp"),
        ({"irr_layers": 1}, "surplus: cross_modal_transformer.resblocks.1.mlp"),
        (
            {"vocab_size": 50},
            "embedding.weight has shape (48, 64), expected (50, ",
        ),
        ({"patch": 16, "stride": 16}, "(128, 3, 8, 8), expected (128, 3, 16, 16)"),
        ({"embed_dim": 128}, "visual.proj has shape (128, 64), expected (128, 128)"),
        (
            {"classes": 7},
            "(5, 64), expected (7, 64); to start with a new head, drop_",
        ),
    ],
)
def test_another_model_is_refused(file, loaded, change, complaint):
    assert complaint in refusal(file, replace(loaded.config, **change))


def test_a_classifier_goes_only_when_asked(file, loaded):
    config = replace(loaded.config, classes=7)
    fresh = weights.load_params(file, config, drop_classifier=True)
    assert "classifier" not in fresh.params
    assert fresh.report.newly_initialised == ("classifier/bias", "classifier/kernel")
    said = [entry for entry in fresh.report.ignored if "dropped as requested" in entry]
    assert len(said) == 2 and said[0].startswith("classifier.weight")
    alone = weights.load_params(file, drop_classifier=True, **SIZE)
    assert alone.config.classes == 0 and "irr" in alone.params


def test_heads_that_the_model_lacks_are_named(file, loaded):
    config = replace(loaded.config, classes=0, irr_layers=0)
    towers = weights.load_params(file, config)
    assert towers.params.keys() == {"image_tower", "text_tower"}
    said = [entry.split(":")[0] for entry in towers.report.ignored]
    assert "classifier.weight" in said and "mlm_head.fc.bias" in said


def test_towers_alone_leave_the_heads_new(tmp_path, official_state, loaded):
    towers = {k: v for k, v in official_state.items() if k.startswith("base_model.")}
    path = save(tmp_path / "ham.pth", towers)
    got = weights.load_params(path, loaded.config)
    new = got.report.newly_initialised
    assert new and {name.split("/")[0] for name in new} == HEADS
    initial = drawn_params(loaded.config)
    whole = flatten(weights.fill(initial, got))
    drawn, given = flatten(initial), flatten(loaded.params)
    assert whole.keys() == drawn.keys()
    for name, leaf in whole.items():
        wanted = drawn if name in new else given
        np.testing.assert_array_equal(leaf, wanted[name], err_msg=name)
    assert weights.load_params(path, **SIZE).config.classes == 0


def test_what_the_field_saves_besides_is_named(tmp_path, official_state):
    extra = {
        "base_model.logit_scale": torch.ones([]),
        "img_memory": torch.rand(9, 64).half(),
        "txt_memory": torch.rand(9, 64).half(),
    }
    path = save(tmp_path / "dgcmia.pth", {**official_state, **extra})
    ignored = weights.load_params(path, **SIZE).report.ignored
    assert [entry.split(":")[0] for entry in ignored] == list(extra)


def test_part_of_a_head_is_no_head(tmp_path, official_state):
    state = {k: v for k, v in official_state.items() if k != "mlm_head.fc.bias"}
    assert "missing: mlm_head.fc.bias" in refusal(save(tmp_path / "m.pth", state))


def test_fill_refuses_another_model(loaded):
    initial = drawn_params(replace(loaded.config, classes=7, irr_layers=0))
    with pytest.raises(weights.WeightsError) as error:
        weights.fill(initial, loaded)
    assert "classifier/kernel has shape (64, 5), expected (64, 7)" in str(error.value)
    assert "irr/head/fc/bias is not in the model" in str(error.value)


def test_a_name_with_and_without_the_prefix(tmp_path, official_state):
    state = {**official_state, "module.classifier.bias": torch.zeros(5)}
    assert "with and without" in refusal(save(tmp_path / "m.pth", state))


def test_a_layer_number_beyond_reason(tmp_path, official_state):
    name = "base_model.visual.transformer.resblocks.999999.ln_1.bias"
    state = {**official_state, name: torch.zeros(128)}
    text = refusal(save(tmp_path / "m.pth", state))
    assert "its names imply 1000000 layers of image_tower" in text


# Grids


def with_grid(state, patches, start="base_model.visual"):
    name = f"{start}.positional_embedding"
    positions = torch.randn(1 + patches, state[name].shape[1])
    return {**state, name: positions}, positions.numpy()


def image_position(loaded):
    return loaded.params["image_tower"]["position"]


def test_grids_that_can_be_told(tmp_path, official_state):
    state, given = with_grid(official_state, 8)
    path = save(tmp_path / "fits.pth", state)
    got = weights.load_params(path, **SIZE)
    np.testing.assert_array_equal(image_position(got), given)

    overlapping = weights.load_params(
        path, image_size=(32, 16), stride=4, source_grid=(4, 2)
    )
    assert overlapping.config.grid == (7, 3)
    assert image_position(overlapping).shape == (22, 128)

    state, given = with_grid(official_state, 9)
    got = weights.load_params(save(tmp_path / "square.pth", state))
    assert got.config.image_size == (24, 24) and got.config.stride == 8
    np.testing.assert_array_equal(image_position(got), given)


def test_grids_that_must_be_stated(tmp_path, official_state):
    path = save(tmp_path / "a.pth", with_grid(official_state, 8)[0])
    text = refusal(path, image_size=None, stride=None)
    assert "8 patches are not a square" in text and "--image-size" in text
    text = refusal(path, image_size=(48, 16))
    assert "neither a square nor 6 x 2; state their shape" in text
    assert "is 3 x 2, but the file has 8" in refusal(path, source_grid=(3, 2))

    state, given = with_grid(official_state, 16)
    path = save(tmp_path / "b.pth", state)
    text = refusal(path, image_size=(64, 16))
    assert "can be 4 x 4 or 8 x 2; state which" in text
    taken = weights.load_params(path, image_size=(64, 16), stride=8, source_grid=(8, 2))
    np.testing.assert_array_equal(image_position(taken), given)
    resized = weights.load_params(
        path, image_size=(64, 16), stride=8, source_grid=(4, 4)
    )
    assert resized.report.resized == (
        "image_tower/position: 4x4 patches -> 8x2 patches",
    )


def test_longer_captions(file, loaded):
    longer = weights.load_params(file, replace(loaded.config, context_length=21))
    assert longer.params["text_tower"]["position"].shape == (21, 64)
    assert longer.report.resized == ("text_tower/position: 10 -> 21",)
    config = replace(loaded.config, context_length=6)
    cut = weights.load_params(file, config, text_positions="keep")
    given = loaded.params["text_tower"]["position"][:6]
    np.testing.assert_array_equal(cut.params["text_tower"]["position"], given)
    assert cut.report.resized == ("text_tower/position: 10 -> 6, keep",)


def test_leaves_are_handed_to_jax_without_a_copy(loaded):
    leaf = loaded.params["text_tower"]["embedding"]
    device = jax.device_put(leaf, may_alias=True)
    assert device.unsafe_buffer_pointer() == leaf.ctypes.data
