# SPDX-License-Identifier: Apache-2.0
"""`pip install .` into an empty folder, and `fmfa` in another, far from the checkout.

What the packages need is taken from where the tests run.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs import cuhk
from fmfa_jax.__main__ import COMMANDS
from fmfa_jax.options import flat
from fmfa_jax.run.environment import code_version
from tests.compiling import quick
from tests.own_lines import Commands, foreign

ROOT = Path(__file__).parents[1]
PACKAGES = ("configs", "data_pipeline", "fmfa_jax")
FILES = ("LICENSE", "README.md", "pyproject.toml", "requirements.txt")

MINE = """
from configs.base import base, with_preset

def get_config(preset="clip"):
    c = base()
    c.name = "mine"
    return with_preset(c, preset).lock()
"""
TINY = [
    *(f"--config.data.options.{split}identities=4" for split in ("", "val_", "test_")),
    "--config.data.options.images_per_identity=1",
    "--config.train.batch_size=4",
    "--config.train.stop_step=1",
    "--config.eval.split=none",
    "--config.log.tensorboard=False",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Where the package is installed, from a copy that pip may build in."""
    folder = tmp_path_factory.mktemp("install")
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    pip += ["--no-build-isolation", "--no-compile", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--target", folder / "site", folder / "source"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def environ(site) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return inherited | quick() | {"PYTHONPATH": str(site)}


@pytest.fixture
def fmfa(site, place, environ):
    """The installed command."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, site / "bin" / "fmfa", *words]
        return subprocess.run(
            command, cwd=place, env=environ, capture_output=True, text=True
        )

    return run


@pytest.fixture(scope="module")
def commands(place, environ):
    """One process for what imports everything."""
    process = Commands(place, environ)
    yield process
    process.close()


def files(top: Path) -> set[str]:
    """All files of our packages, such as the search page and the start weights."""
    found = (path for name in PACKAGES for path in (top / name).rglob("*"))
    return {
        path.relative_to(top).as_posix()
        for path in found
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_file_travels_and_nothing_else(site):
    assert files(site) == files(ROOT)
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {
        *PACKAGES,
        "bin",
    }


def test_fmfa_lists_its_commands(fmfa):
    done = fmfa("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    done = fmfa("serch")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: command='serch' is not known; did you mean s")


def test_bash_completes_names_and_keys(fmfa):
    script = f"""complete() {{ compgen -W "$6" -- --config.train.b; }}
    {fmfa("--completion").stdout}"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("--config.train.batch_size=\n", "")


@pytest.mark.parametrize("name", [n for n in COMMANDS if n not in ("train", "eval")])
def test_each_command_is_called_as_it_was(name, commands):
    told = commands.run("fmfa_jax", name, "--help")
    assert told.code == 0
    assert told.said.startswith(f"usage: fmfa {name} ")
    assert "python -m" not in told.said.partition("positional arguments")[0]
    assert commands.run("fmfa_jax", name, "--no-such").code == 2


def test_the_keys_of_a_config_are_listed(fmfa):
    done = fmfa("train", "--config=cuhk:weak", "--config.train.epochs=3", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: fmfa train ")
    assert "\n  train.epochs = 3  " in done.stdout
    for key in flat(cuhk.get_config("weak").to_dict()):
        assert f"\n  {key} = " in done.stdout


def test_a_config_of_ones_own_builds_on_ours(fmfa, place):
    (place / "mine.py").write_text(MINE)
    done = fmfa("eval", "--config", "./mine.py:weak", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n  name = 'mine-weak'" in done.stdout


def test_it_trains_in_an_empty_folder_from_the_weights_that_travel(fmfa, site, place):
    done = fmfa("train", "--config=demo:clip", "--workdir=run", *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert foreign(done.stdout + done.stderr) == []
    config = json.loads((place / "run" / "config.json").read_text())
    start = site / "configs" / "demo_start.safetensors"
    assert config["init.path"] == str(start) and start.is_file()
    code = json.loads((place / "run" / "environment.json").read_text())["code"]
    assert code == {"version": code_version(), "commit": None}  # as in the checkout
