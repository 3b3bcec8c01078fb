# SPDX-License-Identifier: Apache-2.0
"""Rules of the house: imports run down, nothing unpickles, files stay small."""

import ast
import re
from pathlib import Path

import pytest

from configs.base import base

ROOT = Path(__file__).parents[1]
TOPS = ("fmfa_jax", "data_pipeline", "configs", "benchmarks", "docs")
SOURCES = [
    *sorted(path for top in TOPS for path in (ROOT / top).rglob("*.py")),
    ROOT / "main.py",
]

# A room may import the rooms of lower floors, and itself. Files that lie between the
# rooms are rooms of their own.
FLOORS = {
    "data_pipeline": 0,
    "files": 0,
    "options": 1,
    "plots": 1,
    "keys": 2,
    "models": 2,
    "losses": 2,
    "machines": 2,
    "methods": 3,
    "weights": 3,
    "run": 3,
    "evaluation": 4,
    "figures": 5,
    "training": 6,
    "search": 6,
    "main": 7,
    "__main__": 8,
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
    assert room("fmfa_jax.files.write_text") == "files"
    assert FLOORS["training"] > FLOORS["models"]
    sample = tmp_path / "x.py"
    sample.write_text("def f():\n    from fmfa_jax.training import loop\n")
    assert "fmfa_jax.training.loop" in set(imports(sample))


def test_every_room_has_a_floor():
    rooms = {path.stem for path in (ROOT / "fmfa_jax").iterdir()}
    assert rooms - {"__init__", "__pycache__"} <= FLOORS.keys()


def uses(pattern: str, top: str) -> list[str]:
    """Sources below a folder whose text matches."""
    return [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / top).rglob("*.py"))
        if re.search(pattern, path.read_text())
    ]


def test_losses_know_no_mesh():
    assert uses(r"Mesh|shard_map|sharding", "fmfa_jax/losses") == []


def test_the_config_stops_at_the_door():
    doors = ["fmfa_jax/training/loop.py", "fmfa_jax/training/session.py"]
    doors.append("fmfa_jax/training/settings.py")
    assert uses(r"ConfigDict", "fmfa_jax") == doors
    sections = set(base()) - {"model"}  # a model has a `config`, too
    in_front = ROOT / "fmfa_jax" / "main.py"
    readers = {
        path.relative_to(ROOT).as_posix()
        for path in {*(ROOT / "fmfa_jax").rglob("*.py")} - {in_front}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value).endswith("config")
        and node.attr in sections
    }
    assert readers == set()


def test_one_module_asks_stores():
    names = r"(import|from) (fsspec|s3fs|gcsfs|boto|aiobotocore)"
    assert uses(names, "data_pipeline") == ["data_pipeline/buckets.py"]
    assert uses(names, "fmfa_jax") == []


def test_files_are_written_in_one_way():
    replaced = uses(r"os\.(replace|rename)\(", "fmfa_jax")
    assert replaced == ["fmfa_jax/files.py"]


def test_command_lines_are_taken_in_one_way():
    """`data_pipeline.command.Parser` complains in a line, `path` expands a path."""
    for top in ("fmfa_jax", "data_pipeline"):
        assert uses(r"argparse\.ArgumentParser\(|type=Path", top) == []


CALLING = {"socket", "urllib", "http", "ftplib", "smtplib", "requests", "httpx2"}
CALLING |= {"huggingface_hub", "qdrant_client"}


def test_only_search_and_the_hub_open_connections():
    """Only what hf:// names is fetched or sent; hosts find each other through JAX.

    Search has a server, and hands an index to a Qdrant that was asked for.
    """
    guilty = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if CALLING & {name.split(".")[0] for name in imports(path)}
    }
    search = {f"fmfa_jax/search/{name}.py" for name in ("server", "connections")}
    search |= {"fmfa_jax/search/remote.py"}
    # The last is the server's client under load.
    assert guilty == search | {"fmfa_jax/weights/hub.py", "benchmarks/serve.py"}


def test_near_names_are_suggested_in_one_way():
    found = [line for top in TOPS for line in uses("difflib", top)]
    assert found == ["data_pipeline/hints.py"]


@pytest.mark.parametrize("banned", ["jax", "flax", "optax", "fmfa_jax", "orbax"])
def test_the_data_pipeline_knows_no_accelerator(banned):
    guilty = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "data_pipeline").rglob("*.py")
        if any(name.split(".")[0] == banned for name in imports(path))
    ]
    assert guilty == []


@pytest.mark.parametrize("top", ["models", "losses", "methods", "weights"])
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
