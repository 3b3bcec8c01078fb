# SPDX-License-Identifier: Apache-2.0
"""Every command of the README runs.

Commands are taken from the README's own code blocks and run on a tiny population and
tiny weights in place of the user's: /data and ViT-B-16.pt are put there. What would
take hours is stopped after a step; what sets up a machine is only read.
"""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from data_pipeline.synthetic import write_population
from fmfa_jax import models, weights

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line
    for language, block in BLOCKS
    if language == "bash"
    for line in block.strip().splitlines()
]
PYTHON = [block for language, block in BLOCKS if language == "python"]

# Set-up, whole suites and hours of training: their parts run elsewhere in the tests.
ONLY_READ = ("make ", "pip install ", "python -m benchmarks.")

TINY = [
    "--config.model.preset=demo",
    "--config.model.image_size=(64, 32)",
    "--config.model.context_length=77",
    "--config.train.batch_size=4",
    "--config.train.epochs=6",
    "--config.train.stop_step=1",
    "--config.eval.batch_size=16",
    "--config.eval.pictures=0",
    "--config.log.tensorboard=False",
]


def name(command: str) -> str:
    return command[:70]


def run(arguments: list[str], folder: Path) -> str:
    """Run a command in `folder`, on one device; its output."""
    done = subprocess.run(
        arguments,
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            # Half the time to compile.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        },
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder in which the README's names exist, tiny."""
    folder = tmp_path_factory.mktemp("readme")
    for top in ("main.py", "configs", "docs", "fmfa_jax", "data_pipeline"):
        (folder / top).symlink_to(ROOT / top)
    write_population(
        folder / "data",
        identities=8,
        images_per_identity=1,
        val_identities=2,
        test_identities=4,
    )
    mine = folder / "mine"
    mine.symlink_to(folder / "data" / "CUHK-PEDES" / "imgs")
    entries = json.loads((mine.parent / "data/CUHK-PEDES/reid_raw.json").read_text())
    lines = [
        {
            "file": entry["file_path"],
            "captions": entry["captions"],
            "person": entry["id"],
            "split": entry["split"],
        }
        for entry in entries
    ]
    (mine / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name, entry in zip(("a.jpg", "b.jpg"), entries, strict=False):
        (folder / name).symlink_to(mine / entry["file_path"])
    config = models.ModelConfig(
        **{**vars(models.PRESETS["demo"]), "context_length": 77, "vocab_size": 49408}
    )
    params = models.init_params(config)
    weights.save_native(folder / "clip.safetensors", params, config)
    weights.export_official(folder / "ViT-B-16.pt", params)
    return folder


def adapted(command: str, folder: Path) -> list[str]:
    """The command with the user's paths replaced by tiny ones of `folder`."""
    words = shlex.split(command)
    words = [sys.executable if word == "python" else word for word in words]
    words = [
        word.replace("/my/pictures", str(folder / "mine"))
        .replace("/data", str(folder / "data"))
        .replace("/records", str(folder / "records"))
        .replace("/tmp/people", str(folder / "people"))
        for word in words
    ]
    for flag, value in (("--image-size", "64x32"), ("--stride", "8")):
        if flag in words:
            words[words.index(flag) + 1] = value
    if "--pair" in words:  # of a test split with four people
        words[words.index("--pair") + 1] = "0"
    while "--word" in words:  # of another caption
        place = words.index("--word")
        words[place : place + 2] = []
    if "main.py" in words and "--config=configs/demo.py" not in words:
        words += TINY
        if "configs/folder.py" in command:
            # The interaction encoder compiles for long; the others keep it.
            words += ["--config.losses.mlm=0", "--config.losses.efa=0"]
    if "--config=configs/demo.py" in words:
        words += [
            f"--config.data.root={folder / 'demo'}",
            f"--config.data.tokenizer={folder / 'demo' / 'tokenizer'}",
            "--config.data.options.identities=16",
            "--config.data.options.val_identities=4",
            "--config.data.options.test_identities=4",
            "--config.train.batch_size=8",
            "--config.train.stop_step=1",
            "--config.eval.pictures=0",
            f"--workdir={folder / 'runs' / 'demo'}",
        ]
    return words


def test_the_readme_starts_with_the_two_commands():
    assert COMMANDS[:2] == ["make demo", "make test"]
    assert "python main.py --config=configs/demo.py" in COMMANDS


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.startswith("make ")], ids=name
)
def test_make_targets_exist(command):
    done = subprocess.run(
        ["make", "--dry-run", *command.split()[1:]], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if not c.startswith(ONLY_READ)], ids=name
)
def test_each_command_runs(command, place, monkeypatch):
    words = adapted(command, place)
    if "serve" in words:
        assert "<html" in served(words, place)
        return
    if words[1] != "-m" or words[2].startswith("docs."):
        run(words, place)
        return
    # In this process, because a new one would import everything again.
    monkeypatch.chdir(place)
    module = importlib.import_module(
        f"{words[2]}.__main__" if is_package(words[2]) else words[2]
    )
    assert not module.main(words[3:])


def served(words: list[str], folder: Path) -> str:
    """What a server says on its first page; the command itself never ends."""
    process = subprocess.Popen(
        [*words, "--port", "0"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                with urllib.request.urlopen(found[0], timeout=30) as answer:
                    return answer.read().decode()
        raise AssertionError("the server ended without naming its address")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def is_package(module: str) -> bool:
    return (ROOT / module.replace(".", "/")).is_dir()


def test_the_python_example_runs(place):
    for block in PYTHON:
        code = block.replace("(384, 128), stride=16", "(64, 32), stride=8")
        run([sys.executable, "-c", code], place)
