# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders in and out, held together with transformers itself."""

import json
import shutil
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from data_pipeline import images
from data_pipeline.byte_pairs import (
    END,
    MASK,
    START,
    byte_entries,
    clip_byte_pairs,
    folder_encoder,
)
from data_pipeline.tokenizer import open_tokenizer
from fmfa_jax import models, weights
from fmfa_jax.weights.__main__ import main
from fmfa_jax.weights.tokenizer_files import clip_tables
from tests.tiny_model import TINY

SENTENCES = ["A man in a RED jacket!", "  two  words ", "naïve 3 <b>", "it's 𝒜 💑"]


@pytest.fixture(scope="module")
def theirs():
    """A CLIP of transformers with GELU, a square grid and a small vocabulary."""
    torch.manual_seed(0)
    both = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1}
    both |= {"num_attention_heads": 1, "projection_dim": 64, "hidden_act": "gelu"}
    text = {"max_position_embeddings": 8, "vocab_size": 32}
    config = CLIPConfig(
        projection_dim=64,
        text_config={**both, **text, "bos_token_id": 30, "eos_token_id": 31},
        vision_config={**both, "image_size": 16, "patch_size": 8},
    )
    return CLIPModel(config).eval()


@pytest.fixture
def folder(tmp_path, theirs):
    theirs.save_pretrained(tmp_path)
    return tmp_path


def change(folder, name, **values):
    config = json.loads((folder / name).read_text())
    for path, value in values.items():
        *parts, key = path.split("__")
        place = config
        for part in parts:
            place = place[part]
        place[key] = value
    (folder / name).write_text(json.dumps(config))


IDS = np.array([[30, 3, 4, 31, 0, 0, 0, 0]], np.int32)


def text_feature(model):
    with torch.no_grad():
        output = model.text_model(torch.tensor(IDS.astype(np.int64)))
        return model.text_projection(output.pooler_output).numpy()


# Sharded


@pytest.fixture
def sharded(tmp_path, theirs):
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    return tmp_path


def test_a_sharded_folder_and_its_activation(sharded, theirs):
    model = weights.load_model(sharded)
    assert model.config.activation == "gelu"
    np.testing.assert_allclose(model.encode_text(IDS), text_feature(theirs), atol=1e-5)
    index = sharded / "model.safetensors.index.json"
    again = weights.load_params(index)
    assert again.report.sha256 == model.report.sha256
    assert again.report.source == str(index)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a\\b", "", ".", 3, None]
)
def test_shards_lie_beside_their_index(sharded, name):
    index = sharded / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    places[next(iter(places))] = name
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(weights.WeightsError, match="in its own folder"):
        weights.load_params(sharded)


def test_a_shard_that_is_missing_or_has_other_tensors(sharded):
    first = sorted(sharded.glob("model-*.safetensors"))[0]
    first.rename(sharded / "kept")
    with pytest.raises(
        weights.WeightsError, match=rf"no weight file at .*{first.name}"
    ):
        weights.load_params(sharded)
    shutil.copy(sorted(sharded.glob("model-*.safetensors"))[0], first)
    with pytest.raises(weights.WeightsError, match="does not fit its shards") as error:
        weights.load_params(sharded)
    assert f"is not in {first.name}" in str(error.value)
    (sharded / "model.safetensors.index.json").write_text("[" * 10**5)
    with pytest.raises(weights.WeightsError, match="is not an index of weights"):
        weights.load_params(sharded)


# Tokens behind the end


def test_tokens_behind_the_end_are_refused(folder):
    change(folder, "config.json", text_config__eos_token_id=29)
    with pytest.raises(
        weights.WeightsError,
        match=r"eos_token_id is 29, expected the last of 32 .*resize_token_embeddings",
    ):
        weights.load_params(folder)
    change(folder, "config.json", text_config__eos_token_id=2)  # as before 2023
    assert weights.load_params(folder).config.vocab_size == 32


def test_another_model_of_hugging_face_is_named(folder):
    change(folder, "config.json", model_type="siglip")
    with pytest.raises(weights.WeightsError, match="this is Hugging Face's siglip"):
        weights.load_params(folder)


def test_pictures_of_other_statistics_are_refused(folder):
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    with pytest.raises(weights.WeightsError, match=r"image_mean is \[0\.5"):
        weights.load_params(folder)


@pytest.mark.parametrize("size", [0, -1, 10**9, 2.5, None, "16", [16, 16]])
def test_wild_sizes_in_a_config(folder, size):
    for key in ("image_size", "patch_size", "fmfa_image_size"):
        value = [size, size] if key.startswith("fmfa") else size
        change(folder, "config.json", **{f"vision_config__{key}": value})
        with pytest.raises(weights.WeightsError, match="is not a CLIP config"):
            weights.load_params(folder)


# Tokenizer and preprocessor


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A folder with a tokenizer of CLIP's form, trained on nothing."""
    folder = tmp_path_factory.mktemp("tokenizer")
    merges = [("r", "e"), ("re", "d</w>"), ("m", "a"), ("ma", "n</w>")]
    entries = [*byte_entries(), *("".join(m) for m in merges), MASK, START, END]
    ranks = {entry: place for place, entry in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(ranks), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder, len(entries)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, vocabulary):
    """A model of ours with that tokenizer, exported by the command."""
    place, (tokenizer, size) = tmp_path_factory.mktemp("out"), vocabulary
    config = replace(TINY, vocab_size=size, context_length=24)
    weights.save_native(place / "n.safetensors", models.init_params(config, 0), config)
    arguments = ["export", str(place / "n.safetensors"), "--to", "hf"]
    arguments += [str(place / "hf"), "--tokenizer", str(tokenizer)]
    assert main(arguments) == 0
    return place / "hf", config


def test_their_processor_gives_our_ids_and_pixels(exported, vocabulary, tmp_path):
    folder, config = exported
    processor = CLIPProcessor.from_pretrained(folder)
    height, width = config.image_size
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (3 * height + 5, 2 * width, 3), dtype=np.uint8)
    got = processor(
        text=SENTENCES,
        images=Image.fromarray(picture),
        padding="max_length",
        return_tensors="np",
    )
    ours = open_tokenizer(str(vocabulary[0])).encode(SENTENCES, config.context_length)
    for theirs, row in zip(got["input_ids"], ours, strict=True):
        length = int(row.argmax()) + 1
        np.testing.assert_array_equal(theirs[:length], row[:length])
        assert set(theirs[length:]) <= {config.vocab_size - 1}
    resized = images.resize(picture, config.image_size)
    wanted = models.normalize_images(jnp.asarray(resized[None]))
    pixels = got["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pixels, wanted, rtol=0, atol=1e-6)


def test_their_folder_is_our_tokenizer_again(exported, vocabulary):
    again = open_tokenizer(str(exported[0])).encode(SENTENCES, 24)
    first = open_tokenizer(str(vocabulary[0])).encode(SENTENCES, 24)
    np.testing.assert_array_equal(again, first)


def test_a_tokenizer_of_another_size_is_refused(exported, tmp_path):
    params = weights.load_params(exported[0])
    with pytest.raises(
        weights.WeightsError, match="has 49408 entries, the model wants"
    ):
        weights.export_hugging_face(
            tmp_path / "hf", params.params, params.config, tokenizer="clip"
        )
    assert not list(tmp_path.iterdir())


def test_clips_own_tables_encode_as_its_tokenizer_does():
    vocabulary, merges = clip_tables()
    assert len(vocabulary) == 49408 and len(set(merges)) == len(merges) == 48893
    assert all({*merge, "".join(merge)} <= vocabulary.keys() for merge in merges)
    texts = [
        "a man in a red jacket",
        "jekyll",
        "naïve 日本語 наконец 한국어 🏳️‍🌈",
        "\ufffd",
    ]
    texts += ["the quick brown fox's 42 légs & e\u0301".replace("e\u0301", "é")]
    assert folder_encoder(vocabulary, merges)(texts) == clip_byte_pairs().encode(texts)
