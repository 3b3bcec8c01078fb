# SPDX-License-Identifier: Apache-2.0
"""What an evaluation writes, and the whole way from files to files."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipeline.records import UNKNOWN_PERSON, Pair, Picture, Split
from fmfa_jax.evaluation import (
    EvaluatedSplit,
    Evaluation,
    RetrievalMetrics,
    evaluate,
    report_folder,
    table,
)
from fmfa_jax.evaluation.published import PUBLISHED, TEST_SIZES, published
from fmfa_jax.figures import write_evaluation

PERSONS, PICTURES = 6, 14


class Colours:
    """Pictures of one colour a person; the last picture shows nobody known."""

    def read(self, index: int) -> bytes:
        file = io.BytesIO()
        size = (10, 20)
        Image.new("RGB", size, (40 * (index % PERSONS), 99, index)).save(file, "PNG")
        return file.getvalue()


class Digits:
    """A tokenizer for captions that end with the person's number."""

    vocab_size, mask_id, start_id, end_id = 16, 13, 14, 15

    def encode(self, captions: Sequence[str], context_length: int) -> np.ndarray:
        rows = [
            [14, int(text[-1]), 15] + [0] * (context_length - 3) for text in captions
        ]
        return np.asarray(rows, np.int32).reshape(len(captions), context_length)


@pytest.fixture(scope="module")
def split() -> Split:
    persons = [i % PERSONS for i in range(PICTURES - 1)] + [UNKNOWN_PERSON]
    images = tuple(
        Picture(f"cam/{i}.png", f"/nowhere/{i}.png", p) for i, p in enumerate(persons)
    )
    pairs = tuple(
        Pair(i, f'says "{k}", person {persons[i]}')
        for i in range(PICTURES - 1)
        for k in range(2)
    )
    return Split("test", images, pairs, source=Colours())


@jax.jit
def encode_image(pixels: jax.Array) -> jax.Array:
    """The colour as a person; everybody's is a bit like the next one's."""
    person = jnp.round(pixels[:, 0, 0, 0] / 40).astype(jnp.int32)
    return jax.nn.one_hot(person, PERSONS) + 0.2


@jax.jit
def encode_text(tokens: jax.Array) -> jax.Array:
    """As the pictures, but person 5 is taken for person 0."""
    return jax.nn.one_hot(tokens[:, 1] % 5, PERSONS) + 0.2


def evaluated(
    split: Split, folder: Path, *, step: int, dataset: str = ""
) -> EvaluatedSplit:
    return evaluate(
        encode_image,
        encode_text,
        split,
        tokenizer=Digits(),
        image_size=(8, 4),
        context_length=5,
        batch_size=8,
        folder=folder,
        step=step,
        dataset=dataset,
    )


@pytest.fixture(scope="module")
def run(split: Split, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder = tmp_path_factory.mktemp("run")
    result = evaluated(split, folder, step=120, dataset="cuhk_pedes")
    target = report_folder(folder, 120, "test")
    write_evaluation(target, split, result.features, result.ranks, pictures=2)
    return result.evaluation, folder / "eval" / "120"


def test_who_is_misread_or_has_a_double_is_not_found_first(run: tuple) -> None:
    """Person 5 is taken for person 0; the unknown picture looks as person 1 does."""
    result, _ = run
    wrong = 4 + 4  # two pictures each, two captions a picture
    assert result.t2i.r1 == pytest.approx(100 * (26 - wrong) / 26)
    assert (result.t2i.queries, result.t2i.gallery) == (26, 14)
    # The unknown person's picture is in the gallery, but asks for nothing.
    assert (result.i2t.queries, result.i2t.gallery) == (13, 26)


def test_metrics_json_holds_both_directions(run: tuple) -> None:
    result, folder = run
    record = json.loads((folder / "metrics.json").read_text())
    assert record["t2i"] == result.t2i.as_dict()
    assert record["i2t"] == result.i2t.as_dict()
    assert (record["step"], record["split"]) == (120, "test")
    assert record["dataset"] == "cuhk_pedes"


def test_the_rankings_agree_with_the_metrics(run: tuple, split: Split) -> None:
    result, folder = run
    with (folder / "rankings.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["caption"] for row in rows] == split.captions
    first = np.array([int(row["first_match_rank"]) for row in rows])
    assert 100 * np.mean(first <= 5) == pytest.approx(result.t2i.r5)
    files = {picture.file: picture.person for picture in split.images}
    for row in rows:
        similar = [float(row[f"similarity_{k}"]) for k in range(1, 11)]
        assert similar == sorted(similar, reverse=True)
        for k in range(1, 11):
            match = files[row[f"file_{k}"]] == int(row["person"])
            assert row[f"match_{k}"] == str(int(match))
    assert rows[0]["match_1"] == "1"
    assert rows[10]["match_1"] == "0"  # of person 5


def test_pictures_and_table_are_there_and_nothing_half_written(run: tuple) -> None:
    _, folder = run
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "metrics.json",
        "table.md",
        "rankings.csv",
        "ranking_000000.png",
        "ranking_000025.png",
        "worst.png",
        "similarities.png",
        "features.png",
    }
    assert "# cuhk_pedes, test, step 120" in (folder / "table.md").read_text()


def test_another_split_has_a_folder_of_its_own(split: Split, tmp_path: Path) -> None:
    val = Split("val", split.images, split.pairs, source=split.source)
    result = evaluated(val, tmp_path, step=7)
    target = report_folder(tmp_path, 7, "val")
    write_evaluation(target, val, result.features, result.ranks, pictures=0)
    assert [path.name for path in (tmp_path / "eval").iterdir()] == ["7-val"]
    names = {path.name for path in (tmp_path / "eval" / "7-val").iterdir()}
    assert names == {"metrics.json", "table.md", "rankings.csv"}


def some_evaluation(queries: int, gallery: int) -> Evaluation:
    t2i = RetrievalMetrics(7.5, 20.0, 30.0, 12.25, 3.0, queries, gallery)
    i2t = RetrievalMetrics(100.0, 100.0, 100.0, 99.0, 98.0, gallery, queries)
    return Evaluation(t2i, i2t)


def test_the_table_lines_up() -> None:
    lines = table(some_evaluation(40, 20)).splitlines()
    assert len({len(line) for line in lines}) == 1
    wanted = "| text -> image | 7.50 | 20.00 | 30.00 | 57.50 | 12.25 | 3.00 | 40 | 20 |"
    assert lines[2].split() == wanted.split()
    assert len(lines) == 4


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_numbers_stand_only_beside_the_real_test_split(name: str) -> None:
    queries, gallery = TEST_SIZES[name]
    real = table(some_evaluation(queries, gallery), dataset=f"tfds:{name}")
    for row in PUBLISHED[name]:
        assert f"{row.method} [published]" in real and row.source in real
        assert f"{row.r1:.2f}" in real
    assert "published" not in table(some_evaluation(40, 20), dataset=name)
    assert not published("folder", queries=queries, gallery=gallery)
