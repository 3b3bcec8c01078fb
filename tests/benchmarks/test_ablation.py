# SPDX-License-Identifier: Apache-2.0
"""main.py accepts the ablation's commands; its table shows what the runs came to."""

import csv
import sys
from dataclasses import replace

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from scipy import stats

from benchmarks import common
from benchmarks.ablation import __main__ as command
from benchmarks.ablation.candidates import CANDIDATES
from benchmarks.ablation.rows import GROUPS, ROWS, Row, losses
from benchmarks.ablation.runs import POPULATIONS, SETTING, Run, planned, train
from benchmarks.ablation.table import take_over, write_csv
from configs import demo
from configs.base import base
from fmfa_jax.losses import alignment
from fmfa_jax.options import flat
from fmfa_jax.training import settings
from tests.benchmarks.conftest import table


def parsed(arguments, monkeypatch):
    """The config that main.py would get."""
    monkeypatch.setattr(sys, "argv", arguments)  # where overrides are read from
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    values(arguments)
    return values.config


# The warning comes from how ml_collections opens config files.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("name", ROWS)
def test_each_row_is_a_valid_training(name, tmp_path, monkeypatch):
    monkeypatch.chdir(common.ROOT)
    for rule, loss in CANDIDATES.items():
        monkeypatch.setitem(alignment.RULES, rule, loss)
    run = Run(name, 50, 2, tmp_path, changes=(("train.epochs", "1"),))
    program = len(ROWS[name].program)
    config = parsed(run.command()[program:], monkeypatch)
    settings.read(config)
    assert (config.seed, config.train.epochs, config.data.noise) == (2, 1, 0.5)
    assert config.data.options.seed == POPULATIONS[2]
    for key, value in ROWS[name].changes.items():
        path = key.replace("['", ".").replace("']", "")
        assert flat(config.to_dict())[path] == value, key


def test_a_seed_is_the_same_for_all_rows(tmp_path):
    runs = planned(["irra", "rde"], [0, 50], [0, 1], tmp_path)
    assert len({run.workdir for run in runs}) == len(runs) == 8
    first = [(run.row, run.noise) for run in runs if run.seed == 0]
    assert first == [("irra", 0), ("rde", 0), ("irra", 50), ("rde", 50)]
    data = {a for run in runs[:4] for a in run.command() if "--config.data.root" in a}
    assert len(data) == 1
    assert len({Run(name, 0, 0, tmp_path).workdir for name in ROWS}) == len(ROWS)


def finished(tmp_path, row, noise, seed, r1, best=None):
    run = Run(row, noise, seed, tmp_path / "demo_start")
    figures = {"r1": r1, "r5": 90.0, "r10": 95.0, "mAP": r1 - 10, "mINP": 20.0}
    figures |= {"queries": 800, "gallery": 400}
    run.finish({"last": figures, "best": figures | {"r1": best or r1}})
    return run


def test_the_table_holds_what_the_runs_came_to(tmp_path, capsys):
    irra, rde = (50.0, 51.0, 52.0), (54.0, 53.0, 58.0)
    for seed in range(3):
        finished(tmp_path, "irra", 50, seed, irra[seed])
        finished(tmp_path, "rde", 50, seed, rde[seed], best=60.0)
    options = ("--rows", "irra", "rde", "clip", "--seeds", "0", "1", "2")
    arguments = ["--workdir", str(tmp_path), *options, "--noise", "0", "50"]
    assert command.main([*arguments, "--only-table"]) == 0
    said = capsys.readouterr().out
    _, rows = table(said)
    assert "of unseen people: 800 captions, 400 pictures;" in said
    assert list(rows) == ["irra", "rde"]
    row = rows["rde"]
    assert row["R1 of the last weights, by seed"] == "54.00 53.00 58.00"
    assert (row["mean"], row["spread"], row["best"]) == ("55.00", "2.65", "60.00")
    gaps = np.subtract(rde, irra)
    low, high = stats.ttest_rel(rde, irra).confidence_interval()
    assert row["difference in R1"] == f"{gaps.mean():+.2f} ± {(high - low) / 2:.2f}"
    assert row["in mAP"] == row["difference in R1"]
    assert rows["irra"]["difference in R1"] == ""
    with (tmp_path / "demo_start" / "ablation.csv").open() as lines:
        read = list(csv.DictReader(lines))
    assert (
        len(read) == 12 and read[-1]["weights"] == "best" and read[-1]["r1"] == "60.0"
    )
    assert (tmp_path / "demo_start" / "ablation.png").stat().st_size > 1000


def test_what_was_measured_elsewhere_is_not_trained_again(
    tmp_path, capsys, monkeypatch
):
    runs = [finished(tmp_path, "irra", 0, seed, 50.0 + seed) for seed in (0, 1)]
    options = ["--rows", "irra", "rde", "--seeds", "0", "1", "--only-table"]
    command.main(["--workdir", str(tmp_path), *options])
    before = capsys.readouterr().out
    kept = tmp_path / "demo_start" / "ablation.csv"
    other = ["--workdir", str(tmp_path / "other"), *options, "--measured", str(kept)]
    command.main(other)
    assert capsys.readouterr().out == before
    there = tmp_path / "other" / "demo_start"
    assert (there / "ablation.csv").read_bytes() == kept.read_bytes()
    assert replace(runs[1], folder=there).figures() == runs[1].figures()
    # By whatever name; the preset `tal` is what these changes make of `clip`.
    row = Row("clip", losses(tal=1.0, id=1.0))
    monkeypatch.setitem(ROWS, "renamed", row)
    once = finished(tmp_path, "renamed", 0, 0, 40.0)
    write_csv(kept, [*runs, once])
    now = Run("tal", 0, 0, tmp_path / "now" / "demo_start")
    take_over(kept, [now])
    assert now.figures() == once.figures()
    # Not what a preset was before it became another one.
    monkeypatch.setattr(demo, "get_config", lambda _: base().lock())
    take_over(kept, [replace(now, folder=tmp_path / "became")])
    assert not replace(now, folder=tmp_path / "became").figures()
    monkeypatch.undo()
    # Not those of other weights with the same name, nor of other settings.
    start = tmp_path / "demo_start.safetensors"
    start.write_bytes(b"others")
    longer = replace(runs[0], folder=tmp_path / "longer", start=str(start))
    take_over(kept, [longer])
    assert not longer.figures()
    monkeypatch.setitem(SETTING, "data.options.twins", 0.2)
    harder = replace(runs[0], folder=tmp_path / "harder")
    take_over(kept, [harder])
    assert not harder.figures()
    monkeypatch.undo()
    # Not over what has been measured here.
    finished(tmp_path / "other", "irra", 0, 0, 10.0)
    command.main(other)
    assert "10.00 51.00" in capsys.readouterr().out
    changed = [*other, "--set", "train.epochs=1"]
    command.main(changed)
    assert "no run has finished yet" in capsys.readouterr().out
    kept.write_text("row,r1\nirra,50\n")
    with pytest.raises(ValueError, match=r"columns are row, r1; wanted start, row"):
        command.main(other)


def test_a_run_that_fails_is_named_and_ends_no_other(tmp_path):
    done = finished(tmp_path, "irra", 0, 1, 50.0)
    broken = Run("irra", 0, 0, done.folder, changes=(("model.preset", "nothing"),))
    with pytest.raises(
        RuntimeError, match=r"irra-model\.preset-nothing-noise0-seed0\.log"
    ):
        train([broken, done], jobs=2)
    assert (
        "model.preset"
        in (done.folder / "irra-model.preset-nothing-noise0-seed0.log").read_text()
    )
    assert not broken.figures() and done.figures()["last"]["r1"] == 50.0


def test_groups_hold_every_row_once():
    assert sum(map(len, GROUPS.values())) == len(ROWS)
