# SPDX-License-Identifier: Apache-2.0
"""Exported towers: the same features as ours, any batch, and no Flax to load them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipeline.images import load
from data_pipeline.tokenizer import open_tokenizer
from fmfa_jax import files, models, weights
from fmfa_jax.weights import deploy
from fmfa_jax.weights.__main__ import main
from tests.compiling import quick
from tests.tiny_model import tiny_model

ROOT = Path(__file__).parents[3]
# CLIP's own vocabulary, so that the example reads sentences without a folder; a head
# that features need, beside two that they do not.
CONFIG = tiny_model(
    image_width=128,
    image_layers=2,
    vocab_size=49408,
    text_layers=2,
    classes=3,
    irr_layers=1,
    tse_width=64,
    tse_ratio=0.4,
    dtype="bfloat16",
)
SENTENCE = "a man in a red jacket"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder with weights in which every parameter counts."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: 0.2 * rng.standard_normal(x.shape, np.float32),
        models.param_shapes(CONFIG),
    )
    for head in params["tse"].values():
        head["norm"]["variance"] **= 2
    weights.save_native(folder / "model_best.safetensors", params, CONFIG)
    return folder


@pytest.fixture(scope="module")
def loaded(run) -> models.Retriever:
    return weights.load_model(run)


@pytest.fixture(scope="module")
def stablehlo(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stablehlo")
    assert main(["export", str(run), "--to", "stablehlo", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def onnx(run, tmp_path_factory) -> Path:
    for package in ("jax2onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"ONNX wants {package}")
    folder = tmp_path_factory.mktemp("onnx")
    # In its own process: importing all of jax2onnx's plugins warns and prints.
    command = [sys.executable, "-m", "fmfa_jax.weights", "export", str(run)]
    command += ["--to", "onnx", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return folder


def batches(size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(size)
    images = rng.integers(0, 256, (size, *CONFIG.image_size, 3), dtype=np.uint8)
    texts = [" ".join("red blue bag man".split()[:n]) for n in range(size)]
    return images, open_tokenizer("clip").encode(texts, CONFIG.context_length)


def assert_equal(image, text, loaded, *, tolerance: float) -> None:
    """Compare two encoders with ours, on one and on several rows."""
    for size in (1, 3):
        images, ids = batches(size)
        for got, wanted in (
            (image(images), loaded.encode_image(images)),
            (text(ids), loaded.encode_text(ids)),
        ):
            got = np.asarray(got)
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance)
            assert np.abs(got).max() > 0.1  # of unit rows of 128


def test_stablehlo_gives_our_features(stablehlo, loaded):
    image, text = (
        jax.export.deserialize(bytearray((stablehlo / f"{t}.stablehlo").read_bytes()))
        for t in ("image_tower", "text_tower")
    )
    assert image.platforms == text.platforms == ("cpu", "cuda", "tpu")
    assert image.in_avals[0].dtype == np.uint8 and text.in_avals[0].dtype == np.int32
    assert_equal(image.call, text.call, loaded, tolerance=1e-5)


def test_onnx_gives_our_features(onnx, loaded):
    import onnxruntime

    image, text = (
        onnxruntime.InferenceSession(onnx / f"{tower}.onnx")
        for tower in ("image_tower", "text_tower")
    )
    assert_equal(
        lambda images: image.run(["features"], {"images": images})[0],
        lambda tokens: text.run(["features"], {"tokens": tokens})[0],
        loaded,
        tolerance=1e-4,
    )


def test_what_a_caller_must_know_is_written_down(stablehlo):
    names = ["image_tower.stablehlo", "text_tower.stablehlo", "towers.json"]
    assert sorted(path.name for path in stablehlo.iterdir()) == names
    facts = json.loads((stablehlo / "towers.json").read_text())
    assert facts["image_size"] == [32, 16]
    assert (facts["context_length"], facts["vocab_size"]) == (12, 49408)
    assert facts["feature_width"] == 128
    assert facts["platforms"] == ["cpu", "cuda", "tpu"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    files = [str(folder / f"{number}.png") for number in range(3)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(file)
    return files


@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
def test_the_example_runs_without_flax(form, request, loaded, pictures):
    """Neither Flax nor this project's models; ONNX needs no JAX either."""
    folder = request.getfixturevalue(form)
    banned = ["flax", "fmfa_jax"] + ["jax"] * (form == "onnx")
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({banned}));"
        "runpy.run_module('docs.find_with_export', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder), SENTENCE, *pictures],
        cwd=ROOT,
        env=os.environ | quick(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    images = np.stack([load(file, CONFIG.image_size) for file in pictures])
    tokens = open_tokenizer("clip").encode([SENTENCE], CONFIG.context_length)
    image, text = loaded.encode_image(images), loaded.encode_text(tokens)
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    cosines = np.asarray(image @ text[0])
    order = np.argsort(-cosines)
    assert [file for _, file in lines] == [pictures[i] for i in order]
    found = [float(cosine) for cosine, _ in lines]
    np.testing.assert_allclose(found, cosines[order], atol=2e-4)


def test_without_jax2onnx_the_error_says_what_to_install(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert main(["export", str(run), "--to", "onnx", "unused"]) == 2
    assert "then pip install --no-deps jax2onnx" in capsys.readouterr().err


def test_a_failed_write_leaves_the_last_good_file(tmp_path, monkeypatch):
    path = deploy._write_manifest(tmp_path, CONFIG, {})
    good = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        deploy._write_manifest(tmp_path, CONFIG, {"bad": 1})
    assert path.read_bytes() == good
    assert list(tmp_path.iterdir()) == [path]
