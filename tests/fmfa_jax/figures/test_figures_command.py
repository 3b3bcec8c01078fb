# SPDX-License-Identifier: Apache-2.0
"""`python -m fmfa_jax.figures`: every picture from a run folder, as a user asks."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipeline.tokenizer import open_tokenizer
from fmfa_jax import figures, models, weights
from fmfa_jax.figures.__main__ import main
from tests.tiny_model import tiny_model

CAPTIONS = ("a man in a red jacket", "a woman with a black bag", "a tall man")
CONFIG = tiny_model(vocab_size=49408, irr_layers=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run as training leaves it, on three people of a user's own folder."""
    folder = tmp_path_factory.mktemp("figures")
    rng = np.random.default_rng(0)
    lines = []
    for number, caption in enumerate(CAPTIONS):
        pixels = rng.integers(0, 256, (40, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        entry = {"file": f"{number}.png", "captions": [caption], "split": "test"}
        lines.append(json.dumps(entry | {"person": str(number)}) + "\n")
    (folder / "captions.jsonl").write_text("".join(lines))
    run = folder / "run"
    params = jax.tree.map(
        lambda x: 0.2 * rng.standard_normal(x.shape, np.float32),
        models.param_shapes(CONFIG),
    )
    weights.save_native(run / "model_best.safetensors", params, CONFIG)
    config = {
        "data.name": "folder",
        "data.root": str(folder),
        "data.tokenizer": "clip",
        "eval.batch_size": 4,
        "loss.efa_rule": "plus",
    }
    (run / "config.json").write_text(json.dumps(config))
    record = {"step": 1, "epoch": 1.0, "total": 2.0, "lr": 1e-3}
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    return run


@pytest.mark.parametrize(
    "command, files",
    [
        (["curves"], ["curves.png"]),
        (["rankings", "--count", "1"], ["ranking_000000.png", "worst.png"]),
        (["rankings", "--pair", "2", "--top", "1"], ["ranking_000002.png"]),
        (["worst"], ["worst.png"]),
        (["similarities"], ["similarities.png"]),
        (["features"], ["features.png"]),
        (["words", "--pair", "1"], ["words_000001.png"]),
    ],
)
def test_each_picture_is_drawn(run, tmp_path, capsys, command, files):
    verb, *rest = command
    assert main([verb, str(run), "--out", str(tmp_path), *rest]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    said = capsys.readouterr().out.splitlines()
    assert said == [f"wrote {tmp_path / file}" for file in files]
    for file in files:
        with Image.open(tmp_path / file) as image:
            assert image.convert("L").getextrema() == (0, 255)


@pytest.fixture
def drawn(monkeypatch) -> list[dict]:
    """What the picture of words is made of."""
    calls = []

    def keep(path, pixels, views, config, **rest):
        calls.append({"path": path, "pixels": pixels, "views": views, **rest})
        return path

    monkeypatch.setattr(figures, "write_words", keep)
    return calls


def test_words_come_from_the_towers_and_the_run_s_rule(run, drawn):
    assert main(["words", str(run), "--pair", "0"]) == 0
    (call,) = drawn
    assert call["path"] == run / "figures" / "words_000000.png"
    assert call["chosen"] is None and call["pixels"].shape == (40, 20, 3)
    similarity, attention = call["views"]
    assert similarity.words == attention.words == tuple(CAPTIONS[0].split())
    # "plus" drops the lower half of a range, "official" what is below 1 of 8 patches.
    assert (similarity.patches == 0).mean() > 0.25
    model = weights.load_model(run)
    pixels = np.asarray(
        Image.fromarray(call["pixels"]).resize((16, 32), Image.Resampling.BILINEAR)
    )
    ids = open_tokenizer("clip").encode(CAPTIONS[:1], 12)
    image, text = model.encode_image(pixels[None])[0], model.encode_text(ids)[0]
    cosine = image @ text / np.linalg.norm(image) / np.linalg.norm(text)
    assert call["note"].endswith(f"sentence and picture {cosine:.3f}")
    assert call["note"].startswith("test, pair 0, 0.png")


def test_one_view_of_the_words(run, drawn, capsys):
    assert main(["words", str(run), "--pair", "0"]) == 0
    for number, view in enumerate(("similarity", "attention")):
        assert main(["words", str(run), "--pair", "0", "--view", view]) == 0
        (shown,) = drawn[-1]["views"]
        assert shown.title.startswith(view)
        wanted = drawn[0]["views"][number]
        np.testing.assert_array_equal(shown.patches, wanted.patches)


def test_attention_wants_an_interaction_encoder(run, tmp_path, capsys):
    config = replace(CONFIG, irr_layers=0)
    params = models.init_params(config)
    weights.save_native(tmp_path / "model_best.safetensors", params, config)
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    asked = ["words", str(tmp_path), "--pair", "0", "--view"]
    assert main([*asked, "attention"]) == 2
    assert "no interaction encoder" in capsys.readouterr().err


def test_another_sentence_another_picture_and_chosen_words(run, drawn):
    picture = run.parent / "2.png"
    own = ["--query", "A red bag, a Red coat", "--image", str(picture)]
    assert main(["words", str(run), *own, "--word", "red", "--word", "COAT"]) == 0
    assert main(["words", str(run), "--pair", "0", "--query", "a bag"]) == 0
    assert main(["words", str(run), "--pair", "0", "--image", str(picture)]) == 0
    first, second, third = drawn
    assert first["path"].name == "words.png" and first["note"].startswith("2.png: ")
    assert first["views"][0].words == ("a", "red", "bag", ",", "a", "red", "coat")
    assert first["chosen"] == [1, 5, 6]
    assert second["views"][0].words == ("a", "bag")
    assert "pair 0, 0.png" in second["note"]
    assert third["views"][0].words == tuple(CAPTIONS[0].split())
    np.testing.assert_array_equal(third["pixels"], first["pixels"])


@pytest.mark.parametrize(
    "command, message",
    [
        (["words"], "expected --pair N, or both --query TEXT and --image FILE"),
        (["words", "--query", "a man"], "expected --pair N, or both"),
        (["words", "--pair", "3"], "split 'test' has the pairs 0 to 2"),
        (["rankings", "--pair", "-1"], "split 'test' has the pairs 0 to 2"),
        (["words", "--pair", "0", "--word", "hat"], "whose words are: a, man, in, red"),
        (["words", "--pair", "0", "--query", "!?"], "no word to draw"),
        (["words", "--pair", "0", "--split", "val"], "no captions in split 'val'"),
        (["worst", "--root", "nowhere"], "no folder data set at 'nowhere'"),
        (["worst", "--tokenizer", "clop"], "wanted 'clip' or a folder"),
    ],
)
def test_what_cannot_be_drawn_is_said(run, tmp_path, capsys, command, message):
    verb, *rest = command
    assert main([verb, str(run), "--out", str(tmp_path), *rest]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["worst", str(tmp_path)]) == 2
    assert "expected a run folder" in capsys.readouterr().err
    assert main(["curves", str(tmp_path)]) == 2
    assert "metrics.jsonl" in capsys.readouterr().err
