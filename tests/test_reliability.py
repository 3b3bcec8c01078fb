# SPDX-License-Identifier: Apache-2.0
"""The rows of docs/reliability.md name tests that exist and run where they say."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
TEST = re.compile(r"`(tests/\S+\.py)::(\w+)`")
COLUMNS = ["promise", "`make test`", "`make soak`", "in full"]


def tables() -> list[list[str]]:
    """The cells of all rows of the page's tables, heads and rules left out."""
    text = PAGE.read_text().partition("## Whole runs")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    heads = [row for row in rows if row[0] == COLUMNS[0]]
    assert heads and all(row == COLUMNS for row in heads)
    return [row for row in rows if row not in heads and set(row[0]) != {"-"}]


ROWS = tables()


def runs_in(file: str, name: str) -> set[str]:
    """Which of `make test` and `make soak` run a test."""
    tree = ast.parse((ROOT / file).read_text())
    (found,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    marks = [ast.unparse(each) for each in found.decorator_list]
    if "pytest.mark.soak" in marks:
        return {"soak"}
    both = "TRIES" in marks or any("marks=pytest.mark.soak" in mark for mark in marks)
    return {"test", "soak"} if both else {"test"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_promise_is_held_by_tests_that_run_where_it_says(row):
    promise, short, full, figure = row
    assert promise and figure
    assert TEST.search(short), "no test in `make test`"
    for column, where in ((short, "test"), (full, "soak")):
        for file, name in TEST.findall(column):
            assert where in runs_in(file, name), f"{file}::{name} in make {where}"


def test_a_test_that_is_not_there_is_seen():
    with pytest.raises(ValueError, match="not enough values"):
        runs_in("tests/test_reliability.py", "test_nothing")
