# SPDX-License-Identifier: Apache-2.0
"""`python -m fmfa_jax.evaluation`: each protocol on a run as training leaves it."""

import csv
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.datasets import open_dataset
from data_pipeline.synthetic import people_of, write_population
from data_pipeline.tokenizer import open_tokenizer
from fmfa_jax import models, weights
from fmfa_jax.evaluation import Evaluation, evaluate, write_report
from fmfa_jax.evaluation.__main__ import main
from fmfa_jax.evaluation.protocols import PROTOCOLS
from tests.tiny_model import tiny_model

SIZES = {"identities": 6, "images_per_identity": 2}
SIZES |= {"val_identities": 2, "test_identities": 5}
STEPS = {"best": 4, "last": 9}


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "population"
    return write_population(folder, image_size=(64, 32), **SIZES)


def make_run(folder: Path, people: Path, seed: int, **config) -> Path:
    """A run with its best and last weights, and what it measured of the best."""
    sizes = tiny_model(
        context_length=24,
        vocab_size=open_tokenizer(str(people / "tokenizer")).vocab_size,
    )
    for number, (name, step) in enumerate(STEPS.items()):
        params = models.init_params(sizes, 2 * seed + number)
        facts = {"step": str(step), "chosen_on": "val"}
        weights.save_native(folder / f"model_{name}.safetensors", params, sizes, facts)
    options = {f"data.options.{key}": value for key, value in SIZES.items()}
    flat = {
        **{"name": "tiny", "seed": seed, "data.name": "synthetic"},
        **{"data.root": str(people), "data.tokenizer": str(people / "tokenizer")},
        **{"data.options.image_size": [64, 32], "eval.batch_size": 16},
    }
    (folder / "config.json").write_text(json.dumps(flat | options | config))
    return folder


@pytest.fixture(scope="module")
def run(people, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), people, 0)


@pytest.fixture(scope="module")
def plain(run, people) -> Evaluation:
    """What the plain evaluation says of the best weights on test."""
    return measured(run, people)


def measured(run: Path, people: Path) -> Evaluation:
    model = weights.load_model(run)
    return evaluate(
        model.encode_image,
        model.encode_text,
        open_dataset("cuhk_pedes", str(people)).test,
        tokenizer=open_tokenizer(str(people / "tokenizer")),
        image_size=model.config.image_size,
        context_length=24,
        batch_size=8,
    ).evaluation


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


FLAGS = {
    "hubness": ["--k", "5", "--alpha", "0.5"],
    "rerank": ["--k1", "4", "--k2", "2"],
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_each_protocol_writes_table_and_figure(name, run, plain, capsys):
    assert main([name, str(run), *FLAGS.get(name, [])]) == 0
    folder = run / "eval" / name
    files = {"table.md", "table.csv", "table.json", "figure.png"}
    assert {path.name for path in folder.iterdir()} == files
    said = capsys.readouterr().out
    assert (folder / "table.md").read_text() in said
    assert "model_best.safetensors, step 4, chosen on val" in said
    # Each table begins with the plain evaluation of the test split.
    first = rows_of(folder)[0]
    wanted = {"R1": plain.t2i.r1, "rSum": plain.t2i.rSum, "mAP": plain.t2i.mAP}
    for figure, value in wanted.items():
        assert float(first[figure]) == pytest.approx(value, abs=1e-9)
    assert first["data set"] == "synthetic test" and first["gallery"] == "10"
    with Image.open(folder / "figure.png") as image:
        assert image.convert("L").getextrema() == (0, 255)


def test_the_last_weights_have_a_folder_of_their_own(run, people, capsys):
    arguments = [
        "cross-domain",
        str(run),
        f"synthetic:{people}",
        f"cuhk_pedes:{people}",
    ]
    assert main([*arguments, "--weights", "last", "--split", "val"]) == 0
    rows = rows_of(run / "eval" / "cross-domain-last")
    assert [row["data set"] for row in rows] == ["synthetic val", "cuhk_pedes val"]
    assert rows[0]["R1"] == rows[1]["R1"] and rows[0]["queries"] == "8"
    assert "model_last.safetensors, step 9" in capsys.readouterr().out


def test_drawn_attributes_are_those_of_the_person(run, people, tmp_path):
    assert main(["attributes", str(run), "--out", str(tmp_path)]) == 0
    rows = {(r["attribute"], r["value"]): r for r in rows_of(tmp_path)}
    test = open_dataset("cuhk_pedes", str(people)).test
    who = people_of(people)
    figures = [who[int(person)].figure for person in test.pair_persons]
    for figure in set(figures):
        assert rows["figure", figure]["queries"] == str(figures.count(figure))
    assert main(["attributes", str(run), "--by", "words", "--out", str(tmp_path)]) == 0
    assert ("colour", "black") in {
        (r["attribute"], r["value"]) for r in rows_of(tmp_path)
    }


def test_the_transductive_bank_is_called_so(run, tmp_path):
    flags = ["hubness", str(run), "--k", "3", "--alpha", "1", "--out", str(tmp_path)]
    assert main(flags) == 0
    assert rows_of(tmp_path)[1]["scores"].startswith("corrected by 24 train captions")
    assert main([*flags, "--bank", "test"]) == 0
    name = rows_of(tmp_path)[1]["scores"]
    assert name == "transductive by 20 test captions, k=3, alpha=1"


def test_the_bank_is_what_the_run_learned_from(people, tmp_path):
    run = make_run(tmp_path / "run", people, 0, **{"data.people": 0.5})
    flags = ["--k", "3", "--alpha", "1"]
    assert main(["hubness", str(run), *flags]) == 0
    name = rows_of(run / "eval" / "hubness")[1]["scores"]
    assert name.startswith("corrected by 12 train captions")


@pytest.fixture(scope="module")
def runs(people, run, plain, tmp_path_factory) -> list[Path]:
    """Three seeds of one config, and one of another."""
    folder = tmp_path_factory.mktemp("runs")
    made = [make_run(folder / str(seed), people, seed) for seed in (1, 2)]
    other = make_run(folder / "other", people, 1, **{"losses.efa": 0.0})
    found = [run, *made, other]
    for each in found:
        about = {"step": 4, "split": "test", "dataset": "synthetic"}
        write_report(each / "eval" / "4", measured(each, people), **about)
    return found


def test_seeds_are_averaged_and_other_configs_stand_apart(runs, capsys):
    assert main(["compare", *map(str, runs)]) == 0
    rows = rows_of(runs[0] / "eval" / "compare")
    asked = [row for row in rows if row["direction"] == "text -> image"]
    assert [row["runs"] for row in asked] == ["3", "1"]
    assert [row["config"] for row in asked] == [
        "tiny losses.efa=None",
        "tiny losses.efa=0.0",
    ]
    values = [
        json.loads((run / "eval/4/metrics.json").read_text())["t2i"]["mAP"]
        for run in runs
    ]
    assert float(asked[0]["mAP"]) == pytest.approx(np.mean(values[:3]))
    deviation = statistics.stdev(values[:3])
    assert float(asked[0]["mAP deviation"]) == pytest.approx(deviation)
    assert float(asked[1]["mAP"]) == values[3] and not asked[1]["mAP deviation"]
    said = capsys.readouterr().out
    assert f"{np.mean(values[:3]):.2f} ± {deviation:.2f}" in said
    assert all(str(run) in said for run in runs)


def test_tables_of_protocols_are_compared_row_by_row(runs, tmp_path):
    for run in runs[:2]:
        assert main(["sentences", str(run)]) == 0
    pair = [str(run) for run in runs[:2]]
    arguments = ["compare", *pair, "--table", "sentences", "--out", str(tmp_path)]
    assert main(arguments) == 0
    rows = rows_of(tmp_path)
    first = [rows_of(run / "eval/sentences") for run in runs[:2]]
    assert [row["runs"] for row in rows] == ["2"] * len(first[0])
    for row, *both in zip(rows, *first, strict=True):
        mean = np.mean([float(each["R1"]) for each in both])
        assert float(row["R1"]) == pytest.approx(mean)


def test_errors_are_one_paragraph(run, people, runs, tmp_path, capsys):
    file, lonely = str(run / "model_best.safetensors"), tmp_path / "x.safetensors"
    lonely.write_bytes(Path(file).read_bytes())
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_best.safetensors").write_bytes(lonely.read_bytes())
    (broken / "config.json").write_text('{"data.name": "synthetic"}')
    cases = {
        ("cross-domain", str(run), "icfg_pedes"): "wanted NAME:ROOT",
        ("cross-domain", str(run), "icfg_pedez:/x"): "did you mean icfg_pedes",
        ("cross-domain", str(run), "icfg_pedes:/nowhere"): "is not under",
        ("cross-domain", str(run), f"synthetic:{tmp_path}"): "no drawn people",
        ("cross-domain", str(lonely)): "--out",
        ("cross-domain", str(lonely), "--out", "x"): "NAME:ROOT",
        ("cross-domain", str(tmp_path / "gone")): "no run folder or weight file at",
        ("cross-domain", str(broken)): "data.root is missing",
        ("hubness", str(run)): "wanted --k and --alpha",
        ("hubness", str(run), "--k", "99", "--alpha", "1"): "24 sentences, got 99",
        ("rerank", str(run), "--k2", "40"): "k2 from 1 to k1",
        ("attributes", str(run), f"cuhk_pedes:{people}", "--by", "drawn"): "drawn",
        ("msd", str(run), "--tokenizer", "clip"): "49408 entries",
        ("compare", str(tmp_path)): "no config.json",
        ("compare", str(runs[3]), "--table", "msd"): "table.json",
        ("compare", str(run), "--weights", "last"): "metrics.json",
    }
    for arguments, message in cases.items():
        assert main(arguments) == 2, arguments
        said = capsys.readouterr().err
        assert "error: " in said and message in said and "Traceback" not in said
    assert not list(tmp_path.glob("*.md"))


def test_a_weight_file_alone_is_measured_where_it_is_told(run, people, plain, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes((run / "model_best.safetensors").read_bytes())
    data, tokenizer = f"cuhk_pedes:{people}", str(people / "tokenizer")
    flags = ["--out", str(tmp_path / "out"), "--tokenizer", tokenizer]
    assert main(["cross-domain", str(file), data, *flags]) == 0
    (row,) = rows_of(tmp_path / "out")
    assert float(row["R1"]) == pytest.approx(plain.t2i.r1)
