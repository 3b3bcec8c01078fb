# SPDX-License-Identifier: Apache-2.0
"""Every shipped config with every preset: complete, locked, valid."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.base import ALPHA, PRESETS, base
from fmfa_jax import models
from fmfa_jax.losses import matching
from fmfa_jax.methods import METHODS
from fmfa_jax.options import Options
from fmfa_jax.training import settings

ROOT = Path(__file__).parents[1]
NAMES = ("cuhk", "icfg", "rstp", "ufine", "folder", "demo")


def get(name: str, *preset: str) -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config(*preset)


def flat(config: ConfigDict) -> dict:
    return settings.flat(config.to_dict())


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.mark.parametrize("preset", PRESETS)
def test_each_config_is_complete_locked_and_valid(name, preset):
    config = get(name, preset)
    settings.read(config)
    assert config.is_locked
    wanted = {k for k in flat(base()) if not k.startswith("losses.")}
    got = {k for k in flat(config) if not k.startswith(("losses.", "data.options."))}
    assert got == wanted
    assert config.method == {"weak": "weak", "rde": "rde", "plus": "rde"}.get(
        preset.split("-")[0], "fmfa"
    )
    assert config.name == f"{name}-{preset}"


def test_the_docstring_holds_the_runnable_command(name):
    doc = importlib.import_module(f"configs.{name}").__doc__
    assert f"python main.py --config=configs/{name}.py --workdir=" in doc


def test_the_presets_differ_where_they_say():
    official, paper = get("cuhk", "official"), get("cuhk", "paper")
    repaired = get("cuhk", "repaired")
    assert (official.loss.a_sdm_weight, official.loss.a_sdm_alpha) == ("official", 0.1)
    assert (paper.loss.a_sdm_weight, paper.loss.a_sdm_alpha) == ("paper", 10.0)
    assert get("rstp", "paper").loss.a_sdm_alpha == 1.0
    assert (repaired.loss.efa_rule, repaired.loss.mlm_rule) == ("plus", "plus")
    assert get("icfg", "paper").train.epochs == 100
    irra, clip, tal = (get("cuhk", p) for p in ("irra", "clip", "tal"))
    assert {k for k, v in tal.losses.items() if v} == {"tal", "id"}
    plus, rde = get("cuhk", "plus"), get("cuhk", "rde")
    assert set(plus.losses.values()) == {1.0} and rde.losses.id == 0
    assert (plus.rde.division, rde.rde.division) == ("none", "mixture")
    assert {k for k, v in irra.losses.items() if v} == {"sdm", "id", "mlm"}
    assert {k for k, v in clip.losses.items() if v} == {"itc"}
    assert irra.optimizer.groups == clip.optimizer.groups == "irra"
    assert get("cuhk", "weak-paper").weak.itc_reduction == "sum"
    assert get("rstp", "weak").train.epochs == 16


def test_the_configs_have_the_losses_own_strengths():
    """Stated twice, because configs are read without JAX."""
    assert ALPHA == matching.ALPHA


def test_equal_bits_on_gpus_want_kept_programs():
    config = get("cuhk").copy_and_resolve_references()
    config.run.update({"deterministic": True, "compilation_cache": ""})
    with pytest.raises(ValueError, match=r"deterministic=True.*take auto or a folder"):
        settings.read(config)


def test_the_weak_presets_have_no_loss_that_needs_ids():
    assert set(get("cuhk", "weak").losses) == {"itc", "local", "global", "consistency"}


def test_an_unknown_value_is_an_error_with_the_near_ones():
    config = get("cuhk").copy_and_resolve_references()
    with config.unlocked():
        config.loss.a_sdm_weight = "offical"
    with pytest.raises(ValueError, match=r"a_sdm_weight='offical'.*mean official"):
        settings.read(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.sampler": "identity", "data.per_identity": 3},
            r"config\.data\.per_identity=3: wanted a divisor of config\.train\.batch",
        ),
        ({"data.caption_buckets": (32, 16)}, "buckets .* wanted increasing lengths"),
        ({"data.caption_buckets": (16, 77)}, "buckets .* from 2 to 76"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    config = get("cuhk", "plus").copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        settings.read(config)


def test_a_loss_without_its_head_is_refused():
    config = get("cuhk").copy_and_resolve_references()
    config.model.irr_layers = 0
    told = settings.read(config)
    with pytest.raises(ValueError, match=r"config\.model\.irr_layers=0: wanted layers"):
        told.learns.sized(told.recipe, replace(models.PRESETS["demo"], irr_layers=0))


@pytest.mark.parametrize(
    ("key", "value"),
    [("weak.threshold", float("nan")), ("weak.links", 0), ("weak.rate", 1.5)],
)
def test_so_is_one_of_the_weak_method(key, value):
    config = get("cuhk", "weak").copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=rf"config\.{key}: wanted"):
        settings.read(config)


def test_rde_is_the_published_recipe():
    config = get("cuhk", "rde")
    assert (config.rde.batch_norm, config.train.epochs) == ("frozen", 60)
    assert get("cuhk", "rde-batch").rde.batch_norm == "batch"
    assert get("rstp", "rde").rde.mixture == "tight"
    with config.unlocked():
        config.data.caption_buckets = (32,)
    settings.read(config)  # frozen, no padding enters anything
    config.rde.batch_norm = "batch"
    with pytest.raises(ValueError, match=r"wanted rde\.batch_norm=frozen or no bu"):
        settings.read(config)


def test_every_key_is_read_by_somebody():
    read = {"name", "seed", "method"}
    for cls in (settings.Settings, *(method.Recipe for method in METHODS.values())):
        for field in fields(cls):
            if isinstance(field.type, type) and issubclass(field.type, Options):
                names = [each.name for each in fields(field.type)]
                read |= {f"{field.type.section}.{name}" for name in names}
    known = {key for key in flat(base()) if not key.startswith(("losses.", "data.opt"))}
    assert known - read == set()


@pytest.mark.parametrize("preset", ["tal", "weak"])
def test_a_run_is_what_its_methods_sections_say(preset):
    """No path among it: what the paths lead to counts."""
    identity = settings.read(get("cuhk", preset)).identity()
    sections = {key.split(".")[0] for key in identity}
    assert sections == {
        *("seed", "method", "model", "losses", "loss", "mask", "augment"),
        *("optimizer", "schedule", "weak", "data", "train"),
    }
    assert {key for key in identity if key.startswith("data.")} == {
        *("data.name", "data.sampler", "data.per_identity", "data.caption_buckets"),
    }


def test_noise_is_what_a_run_is_where_there_is_any():
    config = get("cuhk").copy_and_resolve_references()
    clean = settings.read(config).identity()
    config.update_from_flattened_dict({"data.noise": 0.5, "data.noise_seed": 2})
    noisy = settings.read(config).identity()
    assert noisy == clean | {"data.noise": 0.5, "data.noise_seed": 2}


def test_a_share_of_the_people_makes_another_run():
    config = get("cuhk").copy_and_resolve_references()
    config.data.people = 0.1
    assert settings.read(config).identity()["data.people"] == 0.1


def test_a_methods_own_section_is_part_of_its_runs(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Section(Options, section="log"):
        every_steps: int

    @dataclass(frozen=True, kw_only=True)
    class Recipe:
        log: Section

    method = type("Other", (METHODS["fmfa"],), {"Recipe": Recipe})
    monkeypatch.setitem(METHODS, "other", method)
    monkeypatch.setattr(method, "check", lambda *_, **__: None)
    config = get("cuhk").copy_and_resolve_references()
    with config.unlocked():
        config.method = "other"
    assert "log.every_steps" in settings.read(config).identity()
    assert "log.every_steps" not in settings.read(get("cuhk")).identity()


def test_a_config_without_a_loss_is_refused():
    config = get("cuhk").copy_and_resolve_references()
    with config.unlocked():
        for loss in config.losses:
            config.losses[loss] = 0.0
    with pytest.raises(ValueError, match="at least one loss"):
        settings.read(config)


@pytest.mark.parametrize("name", ["efa", "mlm"])
def test_cutting_padding_that_a_released_loss_counts_is_refused(name):
    config = get("cuhk", "repaired").copy_and_resolve_references()
    with config.unlocked():
        config.loss[f"{name}_rule"] = "official"
    with pytest.raises(ValueError, match=f"wanted loss.{name}_rule=plus or no buckets"):
        settings.read(config)


MISTYPED = {
    "--config.train.batch_sise=4": "did you mean train.batch_size",
    "--config.trane.epochs=4": "did you mean train.epochs",
    "--config.train.batch=4": "did you mean train.batch_size",
    "--config.lr=4": "did you mean optimizer.lr",
    "--config.optimizer.learning_rate=4": "did you mean optimizer.lr",
    "--config.init.weights=4": "did you mean init.path",
    "--config.losses.sdn=1": "did you mean losses.sdm",
    "--config.losses['globl']=1": "config.losses.globl: there is no such key",
    "--config.data.options.identitees=1": "there is no such key",
    "--config.zzz=4": "--help lists all keys",
    "--config.train.batch_size=many": "invalid literal for int",
    "--config.train.epochs=2.5": "config.train.epochs=2.5: invalid literal for int",
    "--config.train=3": "Failed to parse '3' as a ConfigDict",
    "--config.weak.rate": "Missing value for flag --config.weak.rate",
    "--mode=evaluate": "should be one of",
    "--workdri=x": "Did you mean: workdir",
    "--config=configs/none.py": "there is no file configs/none.py. Our own configs are",
    "--config=cuk:plus": "there is no file cuk; did you mean cuhk? Our own configs are",
    "--config=~/none.py": "there is no file /home/me/none.py",
    "--config=configs": "there is no file configs",
    "--config=gs://b/x.py": "mount the gs:// address",
    "--config=configs/cuhk.py:plos": "error: --config: wanted a preset among",
    "train": "wanted only --flags, got ['train']",
    "--workdir=https://b/run": "--workdir: wanted a path on a mounted disk",
    "--workdir=gs://": "--workdir: wanted a path on a mounted disk",
    "--workdir=~nobodyhere/run": "no home folder of ~nobodyhere",
}

PARSE_EACH = """
import json, os, sys
from fmfa_jax import main

for flag in json.loads(sys.argv[1]):
    print(flag, flush=True)
    sys.argv = ["main.py", "--config=configs/cuhk.py", flag]
    if not (child := os.fork()):  # each with the flags as they were
        os.dup2(1, 2)
        main.app.run(main.main, flags_parser=main.parse)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, list[str]]:
    """Flag -> what main.py says of it, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-c", PARSE_EACH, json.dumps(list(MISTYPED))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"HOME": "/home/me"},
    )
    assert not done.stderr
    lines = iter(done.stdout.splitlines())
    said: dict[str, list[str]] = {}
    for line in lines:
        said.setdefault(line, []) if line in MISTYPED else said[[*said][-1]].append(
            line
        )
    return said


@pytest.mark.parametrize("flag", MISTYPED)
def test_a_wrong_flag_is_answered_in_a_line(flag, answers):
    line, code = answers[flag]
    assert line.startswith("error: ") and MISTYPED[flag] in line
    assert code == "2"


@pytest.mark.parametrize("key", [*map(".".join, settings.SOURCES + settings.PATHS)])
def test_a_path_is_expanded_or_refused(key):
    config = get("cuhk").copy_and_resolve_references()
    config.update_from_flattened_dict({key: "~/here"})
    assert settings.read(config).flat[key] == str(Path.home() / "here")
    config.update_from_flattened_dict({key: "s3://bucket/here"})
    if tuple(key.split(".")) in settings.SOURCES:
        assert settings.read(config).flat[key] == "s3://bucket/here"
        config.update_from_flattened_dict({key: "nfs://host/here"})
    with pytest.raises(ValueError, match=rf"config\.{key}: wanted a path on a mounted"):
        settings.read(config)


def test_an_unknown_preset_names_all():
    with pytest.raises(ValueError, match=r"'official', 'paper', .*'plus'.*'plos'"):
        get("cuhk", "plos")
