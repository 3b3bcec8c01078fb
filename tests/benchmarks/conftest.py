# SPDX-License-Identifier: Apache-2.0
"""Run benchmarks at a tiny size, without the processes that separate their memory."""

import importlib
import json
import sys

import jax
import pytest
import torch

from benchmarks import common


@pytest.fixture(scope="session")
def one_thread():
    """On a busy machine small operations wait longer for threads than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Compile a program that several children need once."""
    name, folder = "jax_compilation_cache_dir", tmp_path_factory.mktemp("programs")
    before = jax.config.values[name]
    jax.config.update(name, str(folder))
    yield
    jax.config.update(name, before)


def entry(name):
    """Return the module that `python -m name` runs."""
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        return importlib.import_module(f"{name}.__main__")
    return module


@pytest.fixture
def bench(monkeypatch, capsys, one_thread, compiled_once):
    """Run a benchmark with its children in this process; return what it prints."""
    answers = []

    def child(module, *arguments, environment=None, limit=None):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [module, *arguments])
            entry(module).main()
        # A child's answer passes through JSON.
        return json.loads(json.dumps(answers.pop()))

    def run(module, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [module, *arguments])
            entry(module).main()
        return capsys.readouterr().out

    monkeypatch.setattr(common, "child", child)
    monkeypatch.setattr(common, "accelerators", lambda: 0)
    monkeypatch.setattr(
        common, "answer", lambda v: answers.append(dict(v) | {"peak_gb": 1.0})
    )
    return run


def table(text):
    """Return the title of the only table printed, and its rows by name."""
    assert text.count("\n## ") == 1, text
    title = text.split("## ")[1].splitlines()[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    (_, *header), _, *rows = cells
    return title, {name: dict(zip(header, row, strict=True)) for name, *row in rows}
