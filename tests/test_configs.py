# SPDX-License-Identifier: Apache-2.0
"""Every shipped config with every preset: complete, locked, valid."""

import importlib
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.base import ALPHA, PRESETS, base
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
    assert config.method == ("weak" if preset.startswith("weak") else "fmfa")
    assert config.name == f"{name}-{preset}"


def test_the_docstring_holds_the_runnable_command(name):
    doc = importlib.import_module(f"configs.{name}").__doc__
    assert f"python main.py --config=configs/{name}.py --workdir=" in doc


def test_the_presets_differ_where_they_say():
    official, paper, plus = (get("cuhk", p) for p in ("official", "paper", "plus"))
    assert (official.loss.a_sdm_weight, official.loss.a_sdm_alpha) == ("official", 0.1)
    assert (paper.loss.a_sdm_weight, paper.loss.a_sdm_alpha) == ("paper", 10.0)
    assert get("rstp", "paper").loss.a_sdm_alpha == 1.0
    assert (plus.loss.efa_rule, plus.loss.mlm_rule) == ("plus", "plus")
    assert get("icfg", "paper").train.epochs == 100
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
    ("key", "value"),
    [
        ("optimizer.lr", -1e-3),
        ("optimizer.lr", float("nan")),
        ("optimizer.lr", float("inf")),
        ("optimizer.lr", 1e38),  # its update would overflow
        ("optimizer.head_factor", 1e30),
        ("optimizer.b1", 2.0),
        ("optimizer.b2", 1.0),
        ("optimizer.eps", 0.0),
        ("optimizer.weight_decay", -1.0),
        ("optimizer.clip_norm", -1.0),
        ("schedule.warmup_epochs", -1.0),
        ("schedule.end_factor", float("inf")),
        ("augment.flip", 5.0),
        ("augment.pad", 10**6),
        ("augment.erase", -0.1),
        ("mask.rate", 2.0),
        ("loss.scale", 0.0),
        ("loss.a_sdm_alpha", -1.0),
        ("losses.id", -1.0),
        ("data.per_identity", 0),
        ("data.people", 0.0),
        ("data.people", 1.5),
        ("model.image_size", (64,)),
        ("model.image_size", (0, 32)),
        ("model.context_length", 1),
        ("model.irr_layers", -1),
        ("train.epochs", 0),
        ("train.stop_step", -5),
        ("train.max_skipped", -1),
        ("eval.pictures", -1),
        ("checkpoint.keep", 0),
        ("log.every_steps", -1),
        ("run.watchdog_seconds", -1),
        ("seed", 2**70),
        ("seed", -1),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_name(key, value):
    config = get("cuhk").copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=rf"config\.{key}: wanted"):
        settings.read(config)


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


def test_every_key_is_read_by_somebody():
    read = {"name", "seed", "method"}
    for cls in (settings.Settings, *(method.Recipe for method in METHODS.values())):
        for field in fields(cls):
            if isinstance(field.type, type) and issubclass(field.type, Options):
                names = [each.name for each in fields(field.type)]
                read |= {f"{field.type.section}.{name}" for name in names}
    known = {key for key in flat(base()) if not key.startswith(("losses.", "data.opt"))}
    assert known - read == set()


@pytest.mark.parametrize("preset", ["plus", "weak"])
def test_a_run_is_what_its_methods_sections_say(preset):
    """Also what checkpoints of the first versions hold."""
    identity = settings.read(get("cuhk", preset)).identity()
    sections = {key.split(".")[0] for key in identity}
    assert sections == {
        *("seed", "method", "model", "losses", "loss", "mask", "augment"),
        *("optimizer", "schedule", "weak", "data", "train", "init"),
    }
    assert {key for key in identity if key.startswith("data.")} == {
        *("data.name", "data.sampler", "data.per_identity", "data.tokenizer"),
        "data.caption_buckets",
    }


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
    config = get("cuhk", "plus").copy_and_resolve_references()
    with config.unlocked():
        config.loss[f"{name}_rule"] = "official"
    with pytest.raises(ValueError, match=f"wanted loss.{name}_rule=plus or no buckets"):
        settings.read(config)


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("--config.train.batch_sise=4", "did you mean train.batch_size"),
        ("--config.trane.epochs=4", "did you mean train.epochs"),
        ("--config.train.batch=4", "did you mean train.batch_size"),
        ("--config.lr=4", "did you mean optimizer.lr"),
        ("--config.init.weights=4", "init.path"),
        ("--config.zzz=4", "all keys stand in configs/base.py"),
        ("--config.train.batch_size=many", "invalid literal for int"),
        ("--mode=evaluate", "should be one of"),
    ],
)
def test_a_mistyped_flag_is_answered_in_a_line(flag, answer):
    command = [sys.executable, "main.py", "--config=configs/cuhk.py", flag]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert answer in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flag", ["--workdir=gs://b/run", "--config.data.root=s3://b"])
def test_a_url_is_answered_in_a_line_and_nothing_is_written(flag, tmp_path):
    command = [sys.executable, ROOT / "main.py", f"--config={ROOT}/configs/cuhk.py"]
    done = subprocess.run(
        [*command, flag], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "mount" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["data.root", "init.path", "run.compilation_cache"])
def test_the_home_folder_is_meant_by_its_sign(key):
    config = get("cuhk").copy_and_resolve_references()
    config.update_from_flattened_dict({key: "~/here"})
    assert settings.read(config).flat[key] == str(Path.home() / "here")


def test_an_unknown_preset_names_all():
    with pytest.raises(ValueError, match=r"'official', 'paper', 'plus'.*'plos'"):
        get("cuhk", "plos")
