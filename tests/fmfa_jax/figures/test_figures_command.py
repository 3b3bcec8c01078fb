# SPDX-License-Identifier: Apache-2.0
"""`python -m fmfa_jax.figures`: every picture from a run folder, as a user asks."""

import base64
import io
import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
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
    assert main(["words", str(run), "--pair", "0", "--view", "all"]) == 0
    (call,) = drawn
    assert call["path"] == run / "figures" / "words_000000.png"
    assert call["chosen"] is None and call["pixels"].shape == (40, 20, 3)
    contribution, similarity, _ = call["views"]
    for view in call["views"]:
        assert view.words == tuple(CAPTIONS[0].split())
        assert view.patches.shape == (6, 8)
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
    # What the cosine is without "red", by the towers again.
    less = model.encode_text(open_tokenizer("clip").encode(["a man in a jacket"], 12))
    fallen = cosine - image @ less[0] / np.linalg.norm(image) / np.linalg.norm(less)
    np.testing.assert_allclose(contribution.strength[4], fallen, atol=1e-5)


def test_one_view_of_the_words(run, drawn, capsys):
    assert main(["words", str(run), "--pair", "0", "--view", "all"]) == 0
    assert main(["words", str(run), "--pair", "0"]) == 0
    assert drawn[-1]["views"][0].title.startswith("contribution")
    for number, view in enumerate(("contribution", "similarity", "attention")):
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


class Reader(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.pictures, self.words = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs))

    def handle_data(self, data):
        self.words += data


def page_of(run, *others, out):
    assert main(["page", str(run), *map(str, others), "--out", str(out)]) == 0
    return Reader(out)


@pytest.fixture
def reported(run, tmp_path):
    """A copy of the run with evaluations, pictures and what was left out."""
    run = Path(shutil.copytree(run, tmp_path / "run"))
    for name, title in (("7", "test"), ("3-val", "old"), ("7-val", "new")):
        (run / "eval" / name).mkdir(parents=True)
        (run / "eval" / name / "table.md").write_text(f"# {title} <b>\n\n| R1 |\n")
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    for name in ("worst.png", "ranking_000012.png"):
        (run / "eval" / "7" / name).write_bytes(buffer.getvalue())
    (run / "eval" / "7" / "fake.png").write_text("<svg onload=alert(1)>")
    (run / "bad_images.tsv").write_text("path\treason\n<i>.jpg\tbroken\n")
    (run / "data.json").write_text(json.dumps([{"text": "3 captions are empty"}]))
    init = {"source": "a.pt", "ignored": [f"t{i}" for i in range(30)]}
    (run / "init.json").write_text(json.dumps(init))
    return run


def test_the_page_holds_the_whole_report_and_asks_nobody(reported, tmp_path):
    config = json.loads((reported / "config.json").read_text())
    config |= {"name": "<script>alert(1)</script>\u202e", "method": "rde"}
    (reported / "config.json").write_text(json.dumps(config))
    page = page_of(reported, out=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert not {"script", "svg", "link", "i", "b"} & set(page.tags)
    assert "http://" not in text and "https://" not in text and "\u202e" not in text
    assert "default-src 'none'" in text
    words = ["# test <b>", "# new <b>", "1 pictures could not be read", "<i>.jpg"]
    words += ["3 captions are empty", "30 tensors not taken from it: t0, t1"]
    words += ["and 10 more", "fake.png is no PNG", "<script>alert(1)</script>\\u202e"]
    assert [each for each in words if each not in page.words] == []
    assert "# old" not in page.words and str(tmp_path) not in page.words
    alts = [picture["alt"] for picture in page.pictures]
    assert alts == [
        "Caption 12 and its nearest images",
        "The captions whose person is ranked last",
    ]
    for picture in page.pictures:
        encoded = base64.b64decode(picture["src"].partition("base64,")[2])
        assert Image.open(io.BytesIO(encoded)).size == (2, 2)


def test_two_runs_stand_side_by_side(reported, run, tmp_path):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"seed": 3}))
    page = page_of(reported, other, out=tmp_path / "page.html")
    assert page.tags.count("article") == 2
    table = page.words[page.words.index("Where their configs differ") :]
    assert table.startswith("Where their configs differrunotherseednull3run")


@pytest.mark.parametrize("broken", ["config.json", "init.json", "data.json"])
def test_a_page_of_a_damaged_run(reported, capsys, broken):
    (reported / broken).write_text("[1, 2" if broken == "data.json" else "[]")
    assert main(["page", str(reported)]) == 2
    assert broken in capsys.readouterr().err
    assert not (reported / "report.html").exists()
