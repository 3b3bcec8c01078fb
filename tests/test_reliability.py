# SPDX-License-Identifier: Apache-2.0
"""The rows of docs/reliability.md name tests that exist and run where they say."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
TEST = re.compile(r"`(test_\w+\.py)?(?:::)?(test_\w+)`")
COLUMNS = ["promise", "test", "figure"]
FILES = sorted((ROOT / "tests").rglob("test_*.py"))


def rows() -> list[list[str]]:
    """The cells of all rows of promises, heads and rules left out."""
    text = PAGE.read_text().partition("## Whole runs")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    heads = [row for row in cells if row[0] == COLUMNS[0]]
    assert heads and all(row == COLUMNS for row in heads)
    return [row for row in cells if row not in heads and set(row[0]) != {"-"}]


@cache
def runs_of(file: str) -> dict[str, set[str]]:
    """Which of `make test` and `make soak` run each test of a file; "": of any."""
    found = {}
    paths = [path for path in FILES if file in ("", path.name)]
    for path in paths:
        text = path.read_text()
        whole = ["pytest.mark.soak"] * ("pytestmark = pytest.mark.soak" in text)
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef):
                continue
            marks = whole + [ast.unparse(each) for each in node.decorator_list]
            both = any(m == "TRIES" or "marks=pytest.mark.soak" in m for m in marks)
            found[node.name] = {"test", "soak"} if both else {"test"}
            if "pytest.mark.soak" in marks:
                found[node.name] = {"soak"}
    return found


def named(cell: str) -> list[tuple[str, str]]:
    """The tests that a cell names, each with its file."""
    found, file = [], ""
    for own, name in TEST.findall(cell):
        file = own or file
        found.append((file, name))
    return found


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_a_promise_is_held_by_tests_that_run_where_it_says(row):
    promise, cell, figure = row
    short, _, _ = cell.partition("in full")
    every, quick = named(cell), named(short)
    assert promise and figure and quick
    for number, (file, name) in enumerate(every):
        where = "test" if number < len(quick) else "soak"
        assert where in runs_of(file)[name], f"{file}::{name} in make {where}"
