# SPDX-License-Identifier: Apache-2.0
"""Every command line takes paths alike, and says what is wrong in one paragraph."""

import importlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline import command
from data_pipeline.buckets import Bucket
from data_pipeline.delivery import Target
from tests.own_lines import foreign

ROOT = Path(__file__).parents[1]
WEIGHTS, SEARCH = "fmfa_jax.weights.__main__", "fmfa_jax.search.__main__"
FIGURES, CHECK = "fmfa_jax.figures.__main__", "data_pipeline.check"
TFDS = "data_pipeline.datasets.tfds.__main__"
EVALUATION = "fmfa_jax.evaluation.__main__"
SYNTHETIC = "data_pipeline.synthetic.__main__"

# Each argument that is a path, as PATH among others: what is read, and what is written
# in one go, which may lie in a store, and the rest.
READ = [
    (WEIGHTS, "inspect PATH"),
    (WEIGHTS, "import PATH out"),
    (WEIGHTS, "export --to hf PATH out"),
    (WEIGHTS, "export --to hf in out --tokenizer PATH"),
    (WEIGHTS, "push PATH hf://me/towers"),
    (WEIGHTS, "push in hf://me/towers --tokenizer PATH"),
    (SEARCH, "index PATH --model in --out out"),
    (SEARCH, "index in --model PATH --out out"),
    (SEARCH, "index in --model in --out out --tokenizer PATH"),
    (SEARCH, "add in --model PATH"),
    (SEARCH, "remove in --missing --model PATH"),
    (SEARCH, "query PATH man"),
    (SEARCH, "query in man --model PATH"),
    (SEARCH, "query in --image PATH"),
    (SEARCH, "query in man --gallery PATH"),
    (SEARCH, "add in --gallery PATH"),
    (SEARCH, "remove in --missing --gallery PATH"),
    (SEARCH, "verify PATH"),
    (SEARCH, "export PATH out --to npy"),
    (SEARCH, "serve PATH"),
    (SEARCH, "serve in --gallery PATH"),
    (SEARCH, "serve in --model PATH"),
    (EVALUATION, "hubness PATH"),
    (EVALUATION, "hubness in --tokenizer PATH"),
    (EVALUATION, "compare PATH"),
    (FIGURES, "curves PATH"),
    (FIGURES, "page PATH"),
    (FIGURES, "worst in --root PATH"),
    (FIGURES, "worst in --tokenizer PATH"),
    (FIGURES, "words in --query man --image PATH"),
    (CHECK, "PATH"),
    (CHECK, "in --tokenizer PATH"),
    (TFDS, "cuhk_pedes --manual_dir=PATH --data_dir=out"),
]
WRITTEN = [
    (SEARCH, "export in PATH --to npy"),
    (EVALUATION, "hubness in --out PATH"),
    (FIGURES, "curves in --out PATH"),
    (FIGURES, "page in --out PATH"),
]
LOCAL = [
    (WEIGHTS, "import in PATH"),
    (WEIGHTS, "export --to hf in PATH"),
    (WEIGHTS, "pull hf://me/towers PATH"),
    (SEARCH, "index in --model in --out PATH"),
    (SEARCH, "add PATH"),
    (SEARCH, "add in PATH"),
    (SEARCH, "remove PATH --missing"),
    (SEARCH, "remove in PATH"),
    (SEARCH, "query in man --sheet PATH"),
    (SEARCH, "serve in --access-log PATH"),
    (SEARCH, "serve in --ssl-certfile PATH"),
    (SEARCH, "serve in --ssl-certfile in --ssl-keyfile PATH"),
    (TFDS, "cuhk_pedes --manual_dir=in --data_dir=PATH"),
    (SYNTHETIC, "PATH"),
    (SYNTHETIC, "out --sheet PATH"),
]


def words(line: str, path: str) -> list[str]:
    return [word.replace("PATH", path) for word in shlex.split(line)]


@pytest.mark.parametrize(("module", "line"), READ + WRITTEN + LOCAL)
def test_a_path_is_expanded_or_refused(module, line, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    program = importlib.import_module(module)
    taken = vars(program._parser().parse_args(words(line, "~/x")))
    values = [taken["paths"] if taken.get("paths") else [], *taken.values()]
    given = [str(each) for value in values for each in _listed(value)]
    assert "/home/me/x" in given and not any("~" in each for each in given)
    refused = {
        "nfs://host/x": "mount the nfs:// address or copy its files",
        "file:///x": "leave out file://",
        "~nobodyhere/x": "there is no home folder of ~nobodyhere",
    }
    if (module, line) in LOCAL:
        refused["s3://bucket/x"] = "mount the s3:// address or copy its files"
    for path, advice in refused.items():
        said = error_of(program, words(line, path), capsys)
        assert said.startswith("error: argument ")
        assert path in said and advice in said
    assert list(tmp_path.iterdir()) == []


def error_of(program, line: list[str], capsys) -> str:
    """The line that a program ends with."""
    with pytest.raises(SystemExit) as ended:
        program.main(line)
    said = capsys.readouterr()
    assert ended.value.code == 2 and not said.out and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(("module", "line"), READ)
def test_what_is_read_may_lie_in_a_store(module, line, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = importlib.import_module(module)
    said = error_of(program, words(line, "memory://commands/none"), capsys)
    assert "there is no file or folder memory://commands/none" in said
    Bucket("memory://commands").write("one.txt", b"content")
    given = words(line, "memory://commands/one.txt")
    taken = vars(program._parser().parse_args(given)).values()
    texts = [str(each) for value in taken for each in _listed(value)]
    copies = [Path(text) for text in texts if text.startswith(str(tmp_path))]
    assert [path.read_bytes() for path in copies] == [b"content"]


@pytest.mark.parametrize(("module", "line"), WRITTEN)
def test_what_is_written_in_one_go_may_go_to_a_store(module, line):
    program = importlib.import_module(module)
    taken = vars(program._parser().parse_args(words(line, "s3://bucket/x")))
    assert Target("s3://bucket/x") in taken.values()
    assert any(isinstance(each, Target) for each in taken.values())


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def test_what_a_user_may_mean_by_a_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert command.local("", what="x") == ""
    assert command.local("a:b/~c", what="x") == "a:b/~c"
    assert command.local("~", what="x") == "/home/me"
    (tmp_path / "~odd").mkdir()
    assert command.local("~odd", what="x") == "~odd"
    with pytest.raises(ValueError, match=r"--out: .*write \./~new for a name"):
        command.local("~new", what="--out")


ODD = "red\x1b[31m\u202e"
ERRORS = [
    (WEIGHTS, f"inspect {ODD}", "no weight file at red"),
    (WEIGHTS, "inspect other.txt", "other.txt"),
    (WEIGHTS, f"import {ODD} out", "no weight file at red"),
    (WEIGHTS, "import other.txt .", "it is a folder"),
    (WEIGHTS, "export --to hf other.txt other.txt", "it is a file"),
    (WEIGHTS, f"push other.txt {ODD}", "wanted hf://ORG/NAME"),
    (WEIGHTS, f"pull {ODD} out", "wanted hf://ORG/NAME"),
    (SEARCH, f"index {ODD} --model other.txt --out out", ""),
    (SEARCH, f"query {ODD} man", r"red\x1b[31m\u202e"),
    (SEARCH, "query . man --sheet found.txt", "wanted a name that ends in"),
    (SEARCH, f"add {ODD}", r"red\x1b[31m\u202e"),
    (SEARCH, f"verify {ODD}", r"red\x1b[31m\u202e"),
    (SEARCH, "remove . name --even-all", "--even-all belongs to --missing"),
    (SEARCH, "serve . --log-queries", "--log-queries belongs to --access-log"),
    (SEARCH, "remove .", "wanted either files and folders to remove"),
    (FIGURES, f"curves {ODD}", r"red\x1b[31m\u202e"),
    (FIGURES, f"worst {ODD} --out out", r"red\x1b[31m\u202e"),
    (EVALUATION, f"hubness {ODD}", r"red\x1b[31m\u202e"),
    (EVALUATION, "hubness other.txt cuhk_pedes:gs://b", "other.txt"),
    (CHECK, f". --name {ODD}", "is not known"),
    (CHECK, f". --name cuhk_pedes --tokenizer {ODD}", "wanted 'clip' or a folder"),
    (TFDS, f"cuhk_pedes --manual_dir={ODD} --data_dir=out", r"red\x1b[31m\u202e"),
    (SYNTHETIC, ".", "holds something else"),
    (SYNTHETIC, "out --identities -1", "identities"),
]


@pytest.mark.parametrize(("module", "line", "message"), ERRORS)
def test_a_user_s_error_is_one_paragraph(
    module, line, message, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text("no weights")
    program = importlib.import_module(module)
    assert program.main(shlex.split(line)) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and message in said.err and not said.out
    assert "Traceback" not in said.err and "\n\n" not in said.err
    assert not {"\x1b", "\u202e"} & set(said.err)
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]
    assert program.main([*shlex.split(line), "--verbosity=1"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "module", [WEIGHTS, SEARCH, EVALUATION, FIGURES, CHECK, TFDS, SYNTHETIC]
)
def test_a_command_line_that_is_none_is_one_line(module, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main(["--no-such\x1b[2J"])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.err.count("\n") == 1
    assert said.err.startswith("error: ") and said.err.endswith(" --help\n")
    assert "\x1b" not in said.err


SPEAKS = """
import logging, sys, warnings
from absl import logging as absl_logging
from data_pipeline import command
from data_pipeline.buckets import Bucket

def main(arguments):
    logging.getLogger("data_pipeline.x").warning("own \\x1b[2J")
    logging.getLogger("data_pipeline.x").info("detail")
    logging.getLogger("other").warning("foreign")
    absl_logging.warning("foreign")
    warnings.warn("foreign")
    if "stop" in arguments:
        raise KeyboardInterrupt
    return 3

command.run(main)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "lines"),
    [
        ([], 3, [r"warning: own \x1b[2J"]),
        (["stop"], 130, [r"warning: own \x1b[2J", "", "interrupted"]),
    ],
)
def test_a_program_says_its_own_lines(arguments, code, lines):
    done = speaks(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines() == lines


def test_all_is_said_where_that_is_asked_for():
    said = speaks("--verbosity=1").stderr
    assert said.count("foreign") == 3 and "info: detail" in said


def speaks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SPEAKS, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_a_run_that_cannot_start_is_one_paragraph_and_leaves_nothing(tmp_path):
    """A process of its own, as a user starts it: its data is not there."""
    flags = [f"--config={ROOT}/configs/cuhk.py", "--workdir=run"]
    done = subprocess.run(
        [sys.executable, ROOT / "main.py", *flags, "--config.data.root=none\x1b[2J"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    first, *rest = done.stderr.splitlines()
    assert foreign(first) == [] and first.startswith("error: ")
    assert all(line.startswith("  ") for line in rest[:-1]) and len(rest) < 8
    assert r"none\x1b[2J" in done.stderr and "\x1b" not in done.stderr
    assert list(tmp_path.iterdir()) == []
