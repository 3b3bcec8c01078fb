# SPDX-License-Identifier: Apache-2.0
"""Rules of the house: imports run down, nothing unpickles, files stay small."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("fmfa_jax", "data_pipeline", "configs", "benchmarks", "docs")
SOURCES = [
    *sorted(path for top in TOPS for path in (ROOT / top).rglob("*.py")),
    ROOT / "main.py",
]

# A room may import the rooms of a lower floor, and itself.
FLOORS = {
    "models": 0,
    "losses": 0,
    "data_pipeline": 0,
    "weights": 1,
    "evaluation": 1,
    "figures": 2,
    "search": 3,
    "training": 3,
    "main": 4,
}


def imports(path: Path):
    """Every module name that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name: str) -> str | None:
    """The room that a module belongs to."""
    parts = name.split(".")
    if parts[0] == "fmfa_jax":
        return parts[1] if len(parts) > 1 and parts[1] in FLOORS else None
    return parts[0] if parts[0] in FLOORS else None


def upward(path: Path) -> list[str]:
    """Imports of a file that do not run down."""
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is None:
        return []
    return sorted(
        f"{path.relative_to(ROOT)} imports {name}"
        for name in set(imports(path))
        if (other := room(name)) and other != own and FLOORS[other] >= FLOORS[own]
    )


def test_imports_run_down():
    assert [line for path in SOURCES for line in upward(path)] == []


def test_the_import_test_sees_an_arrow_that_runs_up(tmp_path):
    assert room("fmfa_jax.training.loop") == "training"
    assert FLOORS["training"] > FLOORS["models"]
    sample = tmp_path / "x.py"
    sample.write_text("def f():\n    from fmfa_jax.training import loop\n")
    assert "fmfa_jax.training.loop" in set(imports(sample))


@pytest.mark.parametrize("banned", ["jax", "flax", "optax", "fmfa_jax", "orbax"])
def test_the_data_pipeline_knows_no_accelerator(banned):
    guilty = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "data_pipeline").rglob("*.py")
        if any(name.split(".")[0] == banned for name in imports(path))
    ]
    assert guilty == []


@pytest.mark.parametrize("top", ["models", "losses", "weights"])
def test_the_device_side_does_without_tensorflow(top):
    guilty = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "fmfa_jax" / top).rglob("*.py")
        if {"tensorflow", "clu"} & {name.split(".")[0] for name in imports(path)}
    ]
    assert guilty == []


def test_no_file_can_be_unpickled_in_a_way_that_runs_code():
    bad = re.compile(
        r"weights_only\s*=\s*False|pickle\.loads?\(|allow_pickle\s*=\s*True"
    )
    guilty = [str(p) for p in SOURCES if bad.search(p.read_text())]
    assert guilty == []


def test_every_source_names_its_licence_and_no_file_is_too_long():
    for path in SOURCES:
        text = path.read_text()
        assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), path
        assert text.count("\n") <= 400, path
