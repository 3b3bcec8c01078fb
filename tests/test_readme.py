# SPDX-License-Identifier: Apache-2.0
"""The commands in the README and in docs/*.md run, and what the pages name exists.

Commands are taken from the pages' own code blocks and run with a tiny population and
tiny weights in place of /data and ViT-B-16.pt. Training stops after one step; what sets
up a machine or measures for minutes is only parsed. In place of a launcher, such as
torchrun, the command that it starts on each host is run.
"""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import cuhk, demo
from data_pipeline.synthetic import write_population
from docs.layout import FENCE, anchors, led_to, links
from fmfa_jax import models, weights
from fmfa_jax.__main__ import COMMANDS as FMFA
from tests.compiling import quick
from tests.fmfa_jax.machines.hosts import free_port
from tests.hub_server import Hub
from tests.own_lines import Commands, foreign, on_terminal

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [README, *DOCS, CONTRIBUTING, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
TOPS = ("benchmarks/", "configs/", "data_pipeline/", "deploy/", "docs/", "fmfa_jax/")
TOPS += ("tests/",)
SPAN = re.compile(r"`([^`]+)`")

# Set-up, whole suites and long measurements: other tests run their parts.
ONLY_READ = ("make ", "pip install ", "docker ", "kubectl ", "python -m benchmarks.")
SERVED = "http://127.0.0.1:7860"
DEMO = "python main.py --config=configs/demo.py"
LAUNCHERS = ("sbatch ", "bash deploy/", "mpirun ", "mpiexec ", "torchrun ")

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


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


def spans(page: Path) -> list[str]:
    """Return the text of each code span outside of code blocks, on one line."""
    prose = FENCE.sub("", page.read_text())
    return [" ".join(span.split()) for span in SPAN.findall(prose)]


def commands(page: Path) -> Iterator[str]:
    """Yield the commands of a page: of its code blocks, then of its prose."""
    for block in blocks(page, "bash"):
        for line in block.splitlines():
            if line.startswith(LAUNCHERS):
                yield "python main.py " + line[line.index("--config=") :]
            elif line and not line.startswith("#"):
                yield line
    yield from (span for span in spans(page) if span.startswith(("make ", "python -m")))


def in_checkout(command: str) -> str:
    """Return what `fmfa ...` is beside `main.py`; tests/test_install.py runs `fmfa`."""
    if not command.startswith("fmfa "):
        return command
    _, name, *rest = command.split(" ")
    module, *flags = FMFA[name][0].split()
    words = ["main.py"] if module == "fmfa_jax.main" else ["-m", module]
    rest = [re.sub(r"^(--config=)(\w+)", r"\1configs/\2.py", word) for word in rest]
    return " ".join(["python", *words, *rest, *flags])


COMMANDS = [in_checkout(c) for page in (README, *DOCS) for c in commands(page)]
COMMANDS = list(dict.fromkeys(COMMANDS))
EXAMPLES = [block for page in PAGES for block in blocks(page, "python")]
# Those that ask a server are run when it is.
CLIENTS = [block for block in EXAMPLES if SERVED in block]
# Processes of one run, which wait for each other, are started together.
RUNS = [
    tuple(lines)
    for _, lines in groupby(
        (c for c in COMMANDS if not c.startswith(ONLY_READ)),
        key=lambda c: re.sub(r"PROCESS_ID=\d.*", "PROCESS_ID", c),
    )
]


def name(value) -> str:
    """Name a test after the start of its command, or after its page."""
    if isinstance(value, Path):
        return value.name
    return (value if isinstance(value, str) else value[0])[:70]


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Return the variables of a process that runs in `folder` on one device."""
    # What the test run sets for itself would hide lines of libraries.
    inherited = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return (
        inherited
        | {
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        }
        | quick()
        | variables
    )


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`; it must succeed."""
    done = subprocess.run(
        arguments, cwd=folder, capture_output=True, text=True, env=environment(folder)
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr[-3000:]}"
    if "main.py" in arguments:
        assert foreign(done.stdout + done.stderr) == []
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Make a folder that has, in tiny, the files that the pages name."""
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
    other = folder / "data" / "ICFG-PEDES"
    other.mkdir()
    (other / "imgs").symlink_to(folder / "data" / "CUHK-PEDES" / "imgs")
    unseen = [entry for entry in entries if entry["split"] != "val"]
    (other / "ICFG-PEDES.json").write_text(json.dumps(unseen))
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
    config = replace(models.PRESETS["demo"], context_length=77, vocab_size=49408)
    params = models.init_params(config)
    weights.save_native(folder / "clip.safetensors", params, config)
    weights.export_official(folder / "ViT-B-16.pt", params)
    return folder


@pytest.fixture(scope="module")
def hub(place):
    """A Hugging Face Hub that has the tiny weights under OpenAI's name."""
    started = Hub()
    content = (place / "clip.safetensors").read_bytes()
    started.commit("openai/clip-vit-base-patch16", {"model.safetensors": content})
    yield started
    started.close()


@pytest.fixture(scope="module")
def commands(place, hub):
    """The process of all commands `python -m`."""
    there = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    process = Commands(place, environment(place, HF_HOME=str(place / "hub"), **there))
    yield process
    process.close()


def adapted(command: str, folder: Path) -> list[str]:
    """Return the command with the user's paths replaced by tiny ones in `folder`."""
    words = shlex.split(command, comments=True)
    words = [sys.executable if word == "python" else word for word in words]
    words = [
        word.replace("/my/pictures", str(folder / "mine"))
        .replace("/data", str(folder / "data"))
        .replace("/records", str(folder / "records"))
        .replace("/shared", str(folder / "shared"))
        .replace("/tmp/people", str(folder / "people"))
        .replace("camera_7", str((folder / "b.jpg").resolve()))
        for word in words
    ]
    for flag, value in (("--image-size", "64x32"), ("--stride", "8")):
        if flag in words:
            words[words.index(flag) + 1] = value
    if "--pair" in words:  # the tiny test split has four people
        words[words.index("--pair") + 1] = "0"
    while "--word" in words:  # the words of another caption
        place = words.index("--word")
        words[place : place + 2] = []
    if "main.py" in words and "--config=configs/demo.py" not in words:
        words += TINY
        if "/shared" in command:
            # The interaction encoder is slow to compile; other commands keep it.
            words += ["--config.losses.mlm=0", "--config.losses.efa=0"]
        if not ("runs/cuhk" in command or "eval" in command) or "/shared" in command:
            words += ["--config.eval.split=none"]  # as is the way to a table
    if "--config=configs/demo.py" in words:
        words += [
            f"--config.data.root={folder / 'demo'}",
            f"--config.data.tokenizer={folder / 'demo' / 'tokenizer'}",
            "--config.data.options.identities=16",
            "--config.data.options.val_identities=4",
            "--config.data.options.test_identities=4",
            "--config.train.batch_size=8",
            "--config.train.stop_step=2",
            "--config.log.every_steps=1",
            "--config.eval.batch_size=16",
            "--config.eval.pictures=0",
            f"--workdir={folder / 'runs' / 'demo'}",
        ]
    return words


def test_the_readme_starts_with_the_two_commands():
    assert COMMANDS[:2] == ["make demo", "make test"]
    assert DEMO in COMMANDS


def test_fmfa_is_what_runs_in_a_checkout():
    assert in_checkout("fmfa train --config=demo") == DEMO
    assert in_checkout("fmfa eval --config=cuhk:rde --workdir=x") == (
        "python main.py --config=configs/cuhk.py:rde --workdir=x --mode=eval"
    )
    assert in_checkout("fmfa search serve x") == "python -m fmfa_jax.search serve x"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_subcommand_of_fmfa_exists(page):
    for span in spans(page):
        if found := re.match(r"fmfa ([a-z]+)", span):
            assert found[1] in FMFA, f"{page.name} names {span}"


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.startswith("make ")], ids=name
)
def test_make_targets_exist(command):
    done = subprocess.run(
        ["make", "--dry-run", *command.split()[1:]], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.startswith("python -m benchmarks.")], ids=name
)
def test_a_benchmark_takes_its_flags(command, monkeypatch, capsys):
    """The parser accepts them all before it comes to --help."""
    module, *flags = shlex.split(command)[2:]
    monkeypatch.setattr(sys, "argv", [module, *flags, "--help"])
    entry = f"{module}.__main__" if is_package(module) else module
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(entry).main()
    assert ended.value.code == 0
    listed = capsys.readouterr().out
    assert all(flag in listed for flag in flags if flag.startswith("--"))


@pytest.mark.parametrize("together", RUNS, ids=name)
def test_each_command_runs(together, place, commands):
    if len(together) > 1:
        run_together(together, place)
        return
    words = adapted(together[0], place)
    if "serve" in words:
        with (
            serving(words, place) as address,
            urllib.request.urlopen(address, timeout=30) as answer,
        ):
            assert "<html" in answer.read().decode()
            for block in CLIENTS:
                client = [sys.executable, "-c", block.replace(SERVED, address)]
                assert ".jpg" in run(client, place).stdout
        return
    if together[0] == DEMO:
        run_on_a_terminal(words, place)
        return
    if words[1] != "-m" or words[2].startswith("docs."):
        run(words, place)
        return
    done = commands.run(*words[2:])
    assert (done.code, done.foreign) == (0, []), done.said


def run_on_a_terminal(words: list[str], folder: Path) -> None:
    """Train as the README begins: one live line, and below it what matters."""
    code, said = on_terminal(words, folder, environment(folder), columns=60)
    assert code == 0, said
    assert foreign(said, live=True) == []
    progress = re.findall(r"\r([^\r\n]*step (\d+)/2 [^\r\n]*)\x1b\[K", said)
    assert [step for _, step in progress] == ["1", "2"]
    assert not [line for line, _ in progress if len(line) >= 60 or "ETA" in line]
    assert re.search(r"\n100%  step 2/2  total \S+.*\n", said.replace("\r", "\n"))
    assert "step 2, val: text -> image R1" in said


def run_together(lines: tuple[str, ...], folder: Path) -> None:
    """Run the processes of one run, each with the variables before its command."""
    address = f"127.0.0.1:{free_port()}"
    started = []
    for line in lines:
        words = adapted(line.replace("host0:8476", address), folder)
        start = words.index(sys.executable)
        variables = dict(word.split("=", 1) for word in words[:start])
        assert variables["NUM_PROCESSES"] == str(len(lines))
        started.append(
            subprocess.Popen(
                words[start:],
                cwd=folder,
                env=environment(folder, **variables),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(lines), said
    # Gloo, which joins CPUs alone, writes this line from C++, whatever it is told.
    said = [re.sub(r"^\[Gloo\] Rank .*\n", "", each, flags=re.M) for each in said]
    assert [foreign(each) for each in said] == [[]] * len(lines)


@contextmanager
def serving(words: list[str], folder: Path) -> Iterator[str]:
    """The address of a server, which is then ended."""
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
                yield found[0]
                return
        raise AssertionError("the server ended without naming its address")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def is_package(module: str) -> bool:
    return (ROOT / module.replace(".", "/")).is_dir()


@pytest.mark.parametrize(
    "block", [each for each in EXAMPLES if each not in CLIENTS], ids=name
)
def test_the_python_example_runs(block, place):
    code = block.replace("(384, 128), stride=16", "(64, 32), stride=8")
    assert run([sys.executable, "-c", code], place).returncode == 0


def test_the_readme_is_short_and_leads_to_every_page():
    """Itself, or by a page that it leads to."""
    assert len(README.read_text().splitlines()) <= 150
    near = set(led_to(README))
    assert near | {there for page in near for there in led_to(page)} >= set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_and_picture_exists(page):
    for target in links(page.read_text()):
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), f"{page.name} leads to {target}"
        found = anchors(there.read_text()) if anchor else {""}
        assert anchor in found, f"{page.name} leads to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_path_of_the_repository_exists(page):
    """A name in capitals, such as configs/NAME.py, stands for any file there."""
    for path in paths(page):
        folder = re.sub(r"\b[A-Z]+\b.*", "", path) or path
        assert any(ROOT.glob(folder)), f"{page.name} names {path}"


def paths(page: Path) -> Iterator[str]:
    """Yield words in backticks that look like paths from the top of the repository."""
    for word in (word for span in spans(page) for word in span.split()):
        if "::" in word:  # a test, see tests/test_reliability.py
            continue
        word = word.removeprefix("--config=").strip(",;")
        word = re.sub(r"(\.py):\S+$", r"\1", word)  # a preset behind a config's name
        if "=" not in word and (word.startswith(TOPS) or word.endswith(".py")):
            yield word


def test_the_test_of_paths_sees_what_is_missing(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("`fmfa_jax/nowhere/`, `gone.py`, `configs/NAME.py:plus`, `a/b`")
    assert list(paths(page)) == ["fmfa_jax/nowhere/", "gone.py", "configs/NAME.py"]
    with pytest.raises(AssertionError, match=r"page\.md names fmfa_jax/nowhere/"):
        test_every_path_of_the_repository_exists(page)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_key_of_the_config_exists(page):
    configs = [cuhk.get_config("weak"), cuhk.get_config(), demo.get_config()]
    for key in re.findall(r"--config\.([\w.]+)", page.read_text()):
        assert any(has(config, key) for config in configs), f"{page.name} names {key}"


def has(config: ConfigDict, key: str) -> bool:
    first, _, rest = key.partition(".")
    return first in config and (not rest or has(config[first], rest))
