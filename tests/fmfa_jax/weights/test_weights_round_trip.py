# SPDX-License-Identifier: Apache-2.0
"""In, two steps of training, out again: torch and transformers see the same model."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from flax.traverse_util import flatten_dict
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from fmfa_jax import models, weights
from fmfa_jax.weights.__main__ import main

flatten = functools.partial(flatten_dict, sep="/")
SIZE = {"image_size": (32, 16), "stride": 8}


def assert_equal_trees(got, wanted):
    got, wanted = flatten(got), flatten(wanted)
    assert got.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_array_equal(got[path], wanted[path], err_msg=path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("round_trip")


@pytest.fixture(scope="module")
def imported(folder, official_state):
    torch.save({"model": official_state}, folder / "best.pth")
    return weights.load_params(folder / "best.pth", **SIZE)


@pytest.fixture(scope="module")
def training(imported, inputs):
    """Two steps of Adam in which every head takes part.

    The parameters after them, and what our model computes with these.
    """
    config = imported.config
    images, ids = jnp.asarray(inputs.images), jnp.asarray(inputs.ids)
    person = jnp.arange(len(ids)) % config.classes
    losses = optax.softmax_cross_entropy_with_integer_labels

    def loss(params):
        model = models.bind(config, params)
        image = model.encode_images(models.normalize_images(images))
        text = model.encode_texts(ids)
        one, two = models.global_image(image), models.global_text(text, ids)
        masked = model.masked_logits(text, image, ids, ids.shape[1])
        classes = model.identity_logits(one)
        total = losses(one @ two.T / 8, jnp.arange(len(person))).mean()
        total += losses(classes, person).mean()
        total += (losses(masked.logits, masked.labels) * (masked.labels > 0)).mean()
        return total, (image, text, classes, masked)

    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params, state):
        grads, computed = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, computed

    before = jax.tree.map(jnp.asarray, imported.params)
    once, state, _ = step(before, optimizer.init(before))
    twice, state, _ = step(once, state)
    return twice, step(twice, state)[2]


@pytest.fixture(scope="module")
def trained(training):
    return training[0]


@pytest.fixture(scope="module")
def ours(training):
    return training[1]


def test_the_training_moved_every_parameter(imported, trained):
    before, after = flatten(imported.params), flatten(trained)
    for path in before:
        assert not np.array_equal(before[path], after[path]), path


def test_trained_weights_in_the_official_module(
    folder, trained, ours, torch_clip, inputs
):
    path = weights.export_official(folder / "out.safetensors", trained)
    model = torch_clip.official()
    model.load_state_dict(safetensors.torch.load_file(path), strict=True)
    with torch.no_grad():
        image, text = model.base_model(inputs.pixels, inputs.torch_ids)
        classes = model.classifier(image[:, 0])
        masked = model.masked_logits(text, image).numpy()
    np.testing.assert_allclose(ours[0], image, rtol=0, atol=2e-5)
    np.testing.assert_allclose(ours[1], text, rtol=0, atol=2e-5)
    np.testing.assert_allclose(ours[2], classes, rtol=0, atol=2e-5)
    for row, (logits, labels) in enumerate(
        zip(ours[3].logits, ours[3].labels, strict=True)
    ):
        places = np.flatnonzero(inputs.ids[row])
        np.testing.assert_array_equal(labels[: len(places)], inputs.ids[row, places])
        np.testing.assert_allclose(
            logits[: len(places)], masked[row, places], rtol=0, atol=5e-5
        )


def test_official_in_and_out_is_bit_equal(folder, imported, official_state):
    path = weights.export_official(folder / "same.safetensors", imported.params)
    back = safetensors.torch.load_file(path)
    assert back.keys() == official_state.keys()
    for name, tensor in official_state.items():
        assert torch.equal(back[name], tensor), name


def test_our_own_file(folder, imported, trained):
    extra = {"step": "2", "name": "größer"}
    path = weights.save_native(
        folder / "run" / "model_last.safetensors", trained, imported.config, extra
    )
    back = weights.load_params(path)
    assert back.config == imported.config
    assert_equal_trees(back.params, trained)
    assert weights.read_archive(path).metadata.items() >= extra.items()
    theirs = safetensors.numpy.load_file(path)
    assert_equal_trees(theirs, flatten(trained))
    with pytest.raises(ValueError, match=r"reserved by the format: \['config'\]"):
        weights.save_native(path, trained, imported.config, {"config": ""})


def test_a_run_folder_gives_the_best_model_else_the_last(folder, imported):
    run = folder / "another_run"
    last = weights.save_native(
        run / "model_last.safetensors", imported.params, imported.config
    )
    assert weights.load_params(run).report.source == str(last)
    best = weights.save_native(
        run / "model_best.safetensors", imported.params, imported.config
    )
    assert weights.load_params(run).report.source == str(best)
    with pytest.raises(weights.WeightsError, match=r"no weights in the folder"):
        weights.load_params(folder / "another_run" / "..")


def test_our_own_file_for_another_picture_size(folder, imported):
    path = weights.save_native(
        folder / "n.safetensors", imported.params, imported.config
    )
    got = weights.load_params(path, image_size=(48, 32))
    assert got.config == replace(imported.config, image_size=(48, 32))
    assert got.report.resized == ("image_tower/position: 4x2 patches -> 6x4 patches",)
    config = replace(imported.config, classes=9)
    with pytest.raises(
        weights.WeightsError, match=r"shape \(64, 5\), expected \(64, 9\)"
    ):
        weights.load_params(path, config)
    bare = weights.load_params(path, config, drop_classifier=True)
    assert bare.report.newly_initialised == ("classifier/bias", "classifier/kernel")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": "3"}, "version 3 of our format"),
        ({"config": "{}"}, "no usable model config"),
        ({"config": '{"image_size": [1, 2], "wings": 2}'}, "no usable model config"),
    ],
)
def test_our_own_file_from_another_time(folder, change, complaint):
    metadata = {"format": "fmfa_jax", "version": "1", "config": "{}"} | change
    path = folder / "strange.safetensors"
    safetensors.torch.save_file({"w": torch.ones(1)}, path, metadata)
    with pytest.raises(weights.WeightsError, match=complaint):
        weights.load_params(path)


# Hugging Face


def their_config(size, image_size, **vision):
    both = {"projection_dim": size.embed}
    return CLIPConfig(
        projection_dim=size.embed,
        text_config={
            "hidden_size": size.text_width,
            "intermediate_size": 4 * size.text_width,
            "num_hidden_layers": size.text_layers,
            "num_attention_heads": size.text_width // 64,
            "max_position_embeddings": size.context,
            "vocab_size": size.vocab,
            "bos_token_id": size.vocab - 2,
            "eos_token_id": size.vocab - 1,
            **both,
        },
        vision_config={
            "hidden_size": size.width,
            "intermediate_size": 4 * size.width,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.width // 64,
            "image_size": image_size,
            "patch_size": size.patch,
            **both,
            **vision,
        },
    )


def their_features(model, pixels, ids, **options):
    with torch.no_grad():
        vision = model.vision_model(pixels, **options).pooler_output
        text = model.text_model(ids).pooler_output
        return model.visual_projection(vision), model.text_projection(text)


@pytest.fixture(scope="module")
def their_model(torch_clip):
    torch.manual_seed(0)
    model = CLIPModel(their_config(torch_clip.size, 32)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_hugging_face_folder(tmp_path, their_model, inputs, form):
    their_model.save_pretrained(tmp_path)
    if form == "bin":
        torch.save(their_model.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    images = np.concatenate([inputs.images, inputs.images], axis=2)
    pixels = torch.cat([inputs.pixels, inputs.pixels], dim=3)
    wanted = their_features(their_model, pixels, inputs.torch_ids)
    model = weights.load_model(tmp_path)
    assert model.config.image_size == (32, 32)
    got = model.encode_image(images), model.encode_text(inputs.ids)
    for one, two in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)
    assert model.report.ignored == ("logit_scale: the model has no use for it",)

    assert not weights.export_hugging_face(tmp_path / "out", model.params, model.config)
    back = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    state = their_model.state_dict()
    assert back.keys() == state.keys()
    for name in back.keys() - {"logit_scale"}:
        assert torch.equal(back[name], state[name]), name


# 4 x 2 patches need a true pre-image, 6 x 2 only picked columns.
@pytest.mark.parametrize("image_size", [(32, 16), (48, 16), (16, 16)])
def test_transformers_opens_what_we_export(
    tmp_path, imported, trained, inputs, image_size
):
    path = weights.save_native(tmp_path / "n.safetensors", trained, imported.config)
    model = weights.load_model(path, image_size=image_size)
    left_out = weights.export_hugging_face(tmp_path / "hf", model.params, model.config)
    assert {name.split("/")[0] for name in left_out} == {"classifier", "irr"}
    theirs, report = CLIPModel.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys"))
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (2, *image_size, 3), dtype=np.uint8)
    pixels = torch.tensor(np.asarray(models.normalize_images(jnp.asarray(images))))
    wanted = their_features(
        theirs.eval(),
        pixels.permute(0, 3, 1, 2),
        inputs.torch_ids,
        interpolate_pos_encoding=image_size[0] != image_size[1],
    )
    got = model.encode_image(images), model.encode_text(inputs.ids)
    for one, two in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)

    again = weights.load_params(tmp_path / "hf")
    assert again.config.image_size == image_size
    left = flatten(again.params)
    right = {k: v for k, v in flatten(model.params).items() if k in left}
    if image_size == (32, 16):
        place = "image_tower/position"
        np.testing.assert_allclose(left.pop(place), right.pop(place), atol=1e-5)
    assert_equal_trees(left, right)


def test_their_processor_prepares_our_pictures(tmp_path, imported, inputs):
    weights.export_hugging_face(tmp_path, imported.params, imported.config)
    processor = CLIPImageProcessor.from_pretrained(tmp_path)
    pixels = processor(list(inputs.images), return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(pixels, inputs.pixels, rtol=0, atol=1e-6)


def test_grids_that_hugging_face_cannot_cut(tmp_path, imported):
    for change in ({"stride": 4}, {"image_size": (36, 16)}):
        config = replace(imported.config, **change)
        with pytest.raises(weights.WeightsError, match="patches side by side"):
            weights.export_hugging_face(tmp_path, imported.params, config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("part", "change", "complaint"),
    [
        ("vision_config", {"hidden_act": "gelu"}, "its towers have two activations"),
        ("text_config", {"hidden_act": "relu"}, "is relu, expected quick_gelu or gelu"),
        ("text_config", {"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06"),
        ("vision_config", {"num_attention_heads": 4}, "heads is 4, expected 2"),
        ("vision_config", {"patch_size": 0}, "is not a CLIP config"),
        ("vision_config", {"image_size": [32, 16]}, "is not a CLIP config"),
    ],
)
def test_a_clip_that_computes_otherwise(tmp_path, their_model, part, change, complaint):
    their_model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[part] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(weights.WeightsError, match=complaint):
        weights.load_params(tmp_path)


def test_a_folder_without_its_config(tmp_path, their_model):
    their_model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(weights.WeightsError, match=r"no .*config\.json: Hugging"):
        weights.load_params(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(weights.WeightsError, match="is not a CLIP config"):
        weights.load_params(tmp_path)


# The command line


def test_the_three_commands(tmp_path, folder, imported, capsys):
    source, native = str(folder / "best.pth"), str(tmp_path / "n.safetensors")
    sizes = ["--image-size", "32x16", "--stride", "8"]
    assert main(["inspect", source, *sizes]) == 0
    text = capsys.readouterr().out
    assert "kind     torch, official names" in text
    assert "tensor   base_model.visual.proj  float32 (128, 64)" in text
    assert "classes=5" in text and imported.report.sha256 in text
    assert main(["inspect", source]) == 0
    assert "config   unknown: " in capsys.readouterr().out

    assert main(["import", source, native, *sizes, "--drop-classifier"]) == 0
    assert "ignored: classifier.weight: dropped as requested" in capsys.readouterr().out
    origin = weights.read_archive(native).metadata
    assert origin["source_sha256"] == imported.report.sha256

    official = tmp_path / "out.safetensors"
    assert main(["export", native, "--to", "official", str(official)]) == 0
    names = safetensors.torch.load_file(official).keys()
    assert "base_model.visual.proj" in names and "classifier.weight" not in names
    assert main(["export", source, "--to", "hf", str(tmp_path / "hf"), *sizes]) == 0
    assert "left out: classifier/bias" in capsys.readouterr().out
    assert (tmp_path / "hf" / "config.json").is_file()


def test_a_command_that_fails_says_why(tmp_path, folder, capsys):
    source = str(folder / "best.pth")
    assert main(["import", source, str(tmp_path / "n.safetensors")]) == 2
    assert "8 patches are not a square" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        main(["inspect", source, "--image-size", "384"])
    assert "wanted two numbers like 384x128" in capsys.readouterr().err
