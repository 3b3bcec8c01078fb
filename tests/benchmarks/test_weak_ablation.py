# SPDX-License-Identifier: Apache-2.0
"""main.py accepts the ablation's commands; its table shows what the runs say."""

import json
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from benchmarks import weak_ablation
from fmfa_jax.training import settings


def parsed(arguments, monkeypatch):
    """Return the config that main.py would get."""
    monkeypatch.setattr(sys, "argv", arguments)  # where overrides are read from
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    values(arguments)
    return values.config


# The warning comes from how ml_collections opens config files.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("arm", weak_ablation.ARMS)
def test_each_arm_is_a_valid_training(arm, tmp_path, monkeypatch):
    monkeypatch.chdir(weak_ablation.common.ROOT)
    command = weak_ablation.command(tmp_path, arm, 2)
    config = parsed(command[1:], monkeypatch)
    settings.read(config)
    assert config.seed == 2 and config.train.epochs == 8
    assert config.method == ("fmfa" if "supervised" in arm else "weak")
    if arm == "+both":
        assert config.losses["global"] == config.losses.local == 1
        assert config.losses.consistency == 0
    if arm == "itc":
        assert [name for name, weight in config.losses.items() if weight] == ["itc"]


def write_run(folder, r1, precision):
    evaluation = folder / "eval" / "800"
    evaluation.mkdir(parents=True)
    figures = {"t2i": {"r1": r1, "mAP": 40.0, "mINP": 20.0}}
    (evaluation / "metrics.json").write_text(json.dumps(figures))
    lines = [{"epoch": e, "mined_precision": precision * e / 2} for e in (1.0, 2.0)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


def test_the_table_holds_what_the_runs_say(tmp_path, capsys):
    for seed, r1 in enumerate((50.0, 51.0, 52.0)):
        write_run(weak_ablation.folder(tmp_path, "full", seed), r1, 0.9)
    assert weak_ablation.main(["--workdir", str(tmp_path), "--arms"]) == 0
    (row,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("| full")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:6] == ["full", "50.00 51.00 52.00", "51.00", "1.00", "40.00", "20.00"]
    assert cells[6] == "90 %" and cells[7] == "73.06 / 63.71 / 61.30"
    assert (tmp_path / "mined_precision.png").stat().st_size > 1000
