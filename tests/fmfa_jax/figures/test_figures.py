# SPDX-License-Identifier: Apache-2.0
"""The figures: what they count, what they say, and that grey shows it as well."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.records import Pair, Picture, Split
from fmfa_jax.evaluation import Nearest, SplitFeatures
from fmfa_jax.figures import (
    Hit,
    Ranking,
    Retrieved,
    canvas,
    curves,
    draw_spread,
    features,
    sheet,
    write_curves,
    write_feature_map,
    write_similarities,
)


class Grey:
    def read(self, index: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (20, 40), (120, 120, 120)).save(file, "PNG")
        return file.getvalue()


def hit(verdict: str) -> Hit:
    pixels = np.full((40, 20, 3), 120, np.uint8)
    return Hit(pixels, verdict, ("1.  0.812", "a/very/long/folder/name/picture.jpg"))


def grey(verdict: str) -> np.ndarray:
    page = sheet([Ranking("a caption", "a note", (hit(verdict),))])
    return np.asarray(page.convert("L"))


def test_right_and_wrong_differ_without_colour() -> None:
    """Printed black on white they still differ, and by more than a shade."""
    right, wrong = (grey(verdict) < 200 for verdict in ("right", "wrong"))
    assert np.sum(right != wrong) > 200


def test_sign_and_colour_of_a_verdict() -> None:
    assert {canvas.SIGNS[canvas.RIGHT], canvas.SIGNS[canvas.WRONG]} == {"✓", "✗"}
    page = np.asarray(sheet([Ranking("c", "n", (hit("right"),))]))
    green = np.array([0, 0x7A, 0x3D])
    assert np.sum(np.all(page == green, axis=-1)) > 500


def test_many_hits_go_into_rows_of_ten() -> None:
    """Nobody can look at a sheet of 60 pictures in one line."""
    sizes = {
        count: sheet([Ranking("c", "n", (hit("found"),) * count)]).size
        for count in (10, 11, 12, 25)
    }
    assert sizes[10][0] < sizes[11][0] and sizes[10][1] == sizes[11][1]
    assert sizes[12][0] == sizes[25][0] == sizes[10][0]
    tall = sizes[12][1] - sizes[10][1]
    assert tall > 200 and sizes[25][1] - sizes[12][1] == tall
    page = sheet([Ranking("c", "n", (hit("right"),) * 25)])
    green = np.all(np.asarray(page) == (0, 0x7A, 0x3D), axis=-1)
    assert np.sum(np.diff(green.any(axis=1).astype(int)) == 1) == 3


@pytest.mark.parametrize("width", [40, 90, 300])
def test_texts_stay_within_their_width(width: int) -> None:
    face = canvas.font(15)
    text = "a woman with an extraordinarilylongwordwithoutanyspaces and a bag " * 4
    wrapped = canvas.wrap(text, face, width, 3).split("\n")
    assert len(wrapped) == 3
    assert max(face.getlength(line) for line in wrapped) <= width
    assert face.getlength(canvas.shorten("x" * 200, face, width)) <= width
    assert canvas.shorten("short", face, 300) == "short"


def test_a_caption_that_fits_is_not_changed() -> None:
    face = canvas.font(15)
    assert canvas.wrap("two words", face, 300, 4) == "two words"
    assert canvas.wrap("", face, 300, 4) == ""


def test_ranking_files_and_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tuple(Picture(f"{i}.png", "", i % 3) for i in range(6))
    pairs = tuple(Pair(i, f"caption {i}") for i in range(6))
    index = np.argsort((np.arange(6)[:, None] + np.arange(6)) % 6, axis=1)
    drawn: list[list[Ranking]] = []

    def keep(rankings: list[Ranking]) -> Image.Image:
        drawn.append(rankings)
        return sheet(rankings)

    monkeypatch.setattr("fmfa_jax.figures.rankings.sheet", keep)
    first = np.array([1, 9, 1, 4, 8, 2], np.int32)
    similarity = np.linspace(1, 0, 36, dtype=np.float32).reshape(6, 6)
    retrieved = Retrieved(
        Split("test", images, pairs, source=Grey()),
        Nearest(index.astype(np.int32), similarity),
        first,
    )
    files = draw_spread(tmp_path, retrieved, count=2)
    names = ["ranking_000000.png", "ranking_000005.png", "worst.png"]
    assert [file.name for file in files] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    worst = [int(ranking.note.split(",")[0].split()[1]) for ranking in drawn[-1]]
    assert worst == [1, 3, 5]  # one a person: 4 shows the same as 1, 0 as 3
    verdicts = [hit.verdict for hit in drawn[0][0].hits]
    wanted = ["right" if i % 3 == 0 else "wrong" for i in index[0]]
    assert verdicts == ["described", *wanted]
    assert drawn[0][0].hits[1].labels[:2] == ("1.  1.000", f"{index[0, 0]}.png")


def people(seed: int) -> SplitFeatures:
    rng = np.random.default_rng(seed)
    ids = np.arange(20) % 4, np.arange(12) % 4
    centres = rng.normal(size=(4, 8))
    text, image = (
        (centres[i] + 0.3 * rng.normal(size=(len(i), 8))).astype(np.float32)
        for i in ids
    )
    return SplitFeatures(image, ids[1], text, ids[0])


def test_similarities_are_counted_exactly() -> None:
    found = people(0)
    edges, match, other = features.similarity_histograms(found)
    unit = [
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (found.text, found.image)
    ]
    cosines = unit[0] @ unit[1].T
    same = found.text_person[:, None] == found.image_person
    np.testing.assert_array_equal(match, np.histogram(cosines[same], edges)[0])
    np.testing.assert_array_equal(other, np.histogram(cosines[~same], edges)[0])
    assert match.sum() + other.sum() == 240


def test_identical_features_are_counted_too() -> None:
    ones = np.ones((3, 4), np.float32)
    found = SplitFeatures(ones, np.arange(3), ones, np.arange(3))
    _, match, other = features.similarity_histograms(found)
    assert (match.sum(), other.sum()) == (3, 6)


def test_similarities_and_map_are_drawn(tmp_path: Path) -> None:
    for draw in (write_similarities, write_feature_map):
        path = draw(tmp_path / f"{draw.__name__}.png", people(1))
        with Image.open(path) as image:
            assert image.convert("L").getextrema() == (0, 255)


def test_a_map_of_one_person_with_two_points(tmp_path: Path) -> None:
    rows, one = np.ones((1, 4), np.float32), np.zeros(1, int)
    found = SplitFeatures(rows, one, rows, one)
    assert write_feature_map(tmp_path / "map.png", found).exists()


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    rows: list[dict] = [
        {"step": s, "epoch": s / 10, "total": 9 / s, "sdm": None, "lr": 1e-5, "id": 1.0}
        for s in (10, 20, 30)
    ]
    rows[1] |= {"sdm": 2.0, "grad_norm": 3.0, "mlm_dropped": 1.0}
    rows.append({"step": 30, "epoch": 3.0, "val/r1": 50.0, "val/mAP": 40.0})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"losses.sdm": 1.0, "losses.id": 1.0, "losses.efa": 0.0, "loss.scale": 50}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return path


def test_losses_are_told_from_the_rest(metrics: Path) -> None:
    records = curves.read_metrics(metrics)
    configured = curves.read_losses(metrics.with_name("config.json"))
    assert configured == ["sdm", "id", "efa"]
    assert curves.loss_names(records, configured) == ["total", "id", "sdm"]
    assert "sdm" not in records[0]
    assert curves.read_losses(metrics.with_name("none.json")) == []
    assert curves.loss_names(records, []) == ["total"]


def test_curves_show_every_name(
    metrics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    draw = curves.plots.line

    def keep(*args: object, name: str, **rest: object) -> None:
        shown.append(name)
        draw(*args, name=name, **rest)

    monkeypatch.setattr(curves.plots, "line", keep)
    write_curves(metrics, tmp_path / "curves.png")
    assert shown == ["total", "id", "sdm", "lr", "val/r1", "val/mAP"]


def test_the_total_is_told_first(metrics: Path) -> None:
    lines = metrics.read_text().replace('"total"', '"zzz"').replace('"id"', '"total"')
    metrics.write_text(lines.replace('"zzz"', '"efa"'))
    records = curves.read_metrics(metrics)
    assert curves.loss_names(records, ["sdm", "efa"]) == ["total", "efa", "sdm"]


def test_a_torn_last_line_is_left_out_and_another_is_an_error(metrics: Path) -> None:
    whole = metrics.read_text()
    metrics.write_text(whole + '{"step": 40, "ep')
    assert len(curves.read_metrics(metrics)) == 4
    metrics.write_text("rubbish\n" + whole)
    with pytest.raises(ValueError, match="line 1: expected a JSON object"):
        curves.read_metrics(metrics)


def test_no_record_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no record"):
        write_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
