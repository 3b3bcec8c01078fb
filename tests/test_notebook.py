# SPDX-License-Identifier: Apache-2.0
"""docs/quickstart.ipynb: its form, its commands and, in `make soak`, a whole run."""

import ast
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from configs import demo
from docs import layout
from tests.test_readme import environment, has

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / layout.NOTEBOOK
TEXT = NOTEBOOK.read_text()
CELLS = json.loads(TEXT)["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
FORM = {"nbformat": 4, "nbformat_minor": 5}
EMPTY = {"execution_count": None, "outputs": []}


def tags(cell: Mapping[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def test_it_is_a_notebook_without_outputs():
    """As nbformat 4.5 wants it; written as Jupyter writes, for small differences."""
    notebook = json.loads(TEXT)
    assert FORM.items() <= notebook.items()
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    assert {cell["cell_type"] for cell in CELLS} == {"markdown", "code"}
    assert all(EMPTY.items() <= cell.items() for cell in CODE)
    assert json.dumps(notebook, indent=1, ensure_ascii=False) + "\n" == TEXT


def test_its_code_is_python():
    """Magics, which only Jupyter knows, could not be run by a test."""
    for cell in CODE:
        ast.parse("".join(cell["source"]))
    assert [tags(cell) for cell in CODE].count(["parameters"]) == 1


def test_its_links_lead_somewhere():
    for kind, text in layout.cells_of({"cells": CELLS}):
        for target in layout.links(text) if kind == "markdown" else ():
            assert (NOTEBOOK.parent / target).is_file(), target


def play(
    patch: pytest.MonkeyPatch,
    place: Path,
    look: Callable[[str], object],
    values: Mapping[str, Any],
) -> None:
    """Run the code cells in order, in one namespace, as in a kernel below `place`.

    `values` replace names after the cells that define them. `look` gets the path of
    each picture that is shown.
    """
    jupyter = ModuleType("IPython.display")
    jupyter.Image, jupyter.display = look, lambda _: None
    patch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    patch.setitem(sys.modules, "IPython.display", jupyter)
    patch.chdir(place)
    names: dict[str, Any] = {}
    for cell in CODE:
        if "install" not in tags(cell):
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
            names |= {name: values[name] for name in values if name in names}


def test_it_shows_commands_and_keys_that_exist(monkeypatch, capsys):
    """Its commands are collected, and their own parsers asked for the flags."""
    commands: list[tuple[str, ...]] = []
    record = {"run": lambda *words: commands.append(words)}
    play(monkeypatch, ROOT / "docs", str, record)
    assert [words[0] for words in commands] == ["main.py", *["-m"] * 4]
    config = demo.get_config()
    for key in (w.split("=")[0] for w in commands[0] if w.startswith("--config.")):
        assert has(config, key.removeprefix("--config.")), key
    for _, module, *words in commands[1:]:
        flags = [word for word in words if word.startswith("--")]
        monkeypatch.setattr(sys, "argv", [module, words[0], "--help"])
        with pytest.raises(SystemExit):
            importlib.import_module(f"{module}.__main__").main()
        listed = capsys.readouterr().out
        assert flags and all(flag in listed for flag in flags), (module, flags)


@pytest.mark.soak
def test_it_runs_and_shows_its_pictures(monkeypatch, tmp_path):
    """With few people, from a folder below the checkout, as Jupyter starts there."""
    for top in ("main.py", "configs", "docs", "fmfa_jax", "data_pipeline"):
        (tmp_path / top).symlink_to(ROOT / top)
    below = tmp_path / "notebooks"
    below.mkdir()
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    sizes: dict[str, tuple[int, int]] = {}

    def look(path: str) -> None:
        with Image.open(path) as picture:
            sizes[Path(path).name] = picture.size

    play(monkeypatch, below, look, {"PEOPLE": 8, "BATCH": 8})
    assert os.path.samefile(os.getcwd(), tmp_path)
    kinds = {name.split("_")[0].removesuffix(".png") for name in sizes}
    assert kinds == {"ranking", "words", "found"}, sizes
