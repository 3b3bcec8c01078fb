# SPDX-License-Identifier: Apache-2.0
"""Tables that runs wrote, side by side; runs that differ in seed only are averaged."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.hints import printable
from data_pipeline.regular import read_json
from fmfa_jax import weights
from fmfa_jax.evaluation.runs import Run
from fmfa_jax.evaluation.tables import FIGURES, SIZES, Cell, Spread, Table, read_table

EVALUATION = "evaluation"
"""The table of the plain evaluation, which training writes."""

_DIRECTIONS = {"t2i": "text -> image", "i2t": "image -> text"}
# Where and how a run is done, and what it is called: nothing of what it computes.
_ELSEWHERE = ("run.", "log.", "checkpoint.", "mesh.", "data.cache", "eval.pictures")


@dataclass(frozen=True)
class Group:
    """Runs that differ in seed only, and the table that each wrote."""

    name: str
    runs: tuple[Path, ...]
    tables: tuple[Table, ...]


def compare(paths: Sequence[Path], *, table: str, which: str) -> Table:
    """Put the tables of runs side by side.

    Args:
        paths: Run folders.
        table: A protocol's name, or EVALUATION.
        which: "best" or "last" weights.

    Raises:
        OSError: A run has no config.json, or did not write the table.
        ValueError: A table is damaged, or two have other columns.
    """
    runs = [Run(path, which) for path in paths]
    configs = [run.config for run in runs]
    found = [_written(run, table) for run in runs]
    first = found[0]
    for path, other in zip(paths, found, strict=True):
        if (other.labels, other.figures) != (first.labels, first.figures):
            raise ValueError(
                f"{path}: wanted a table with the columns of {paths[0]}'s, got "
                f"{', '.join((*other.labels, *other.figures))}"
            )
    groups = _grouped(paths, configs, found)
    rows = [row for label in _labels(found) for row in _rows(label, groups)]
    title = f"{table}, {which} weights of {len(paths)} runs"
    return Table(
        title,
        (*first.labels, "config", "runs"),
        first.figures,
        tuple(rows),
        (
            "Mean ± sample standard deviation over runs that differ in seed only.",
            *(f"{g.name}: {', '.join(map(_called, g.runs))}." for g in groups),
        ),
    )


def _called(path: Path) -> str:
    return printable(str(path))


def _labels(tables: Sequence[Table]) -> list[tuple[Cell, ...]]:
    """Return the names of all rows, in order of their first appearance."""
    names = [row[: len(t.labels)] for t in tables for row in t.rows]
    return list(dict.fromkeys(names))


def _rows(label: tuple[Cell, ...], groups: Sequence[Group]) -> list[tuple[Cell, ...]]:
    """Return the row of that name for each group that has it."""
    rows = []
    for group in groups:
        same = [
            row[len(label) :]
            for table in group.tables
            for row in table.rows
            if row[: len(label)] == label
        ]
        if same:
            cells = (_spread(column) for column in zip(*same, strict=True))
            rows.append((*label, group.name, len(same), *cells))
    return rows


def _spread(cells: Sequence[Cell]) -> Cell:
    known = [cell for cell in cells if cell is not None]
    return Spread.of(known) if known else None


def _grouped(
    paths: Sequence[Path],
    configs: Sequence[Mapping[str, Any]],
    tables: Sequence[Table],
) -> list[Group]:
    """Return the groups, in order; they are named by what tells them apart."""
    members: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        members.setdefault(json.dumps(_essence(config), sort_keys=True), []).append(
            number
        )
    heads = [_essence(configs[numbers[0]]) for numbers in members.values()]
    return [
        Group(
            _name(head, heads),
            tuple(paths[n] for n in numbers),
            tuple(tables[n] for n in numbers),
        )
        for head, numbers in zip(heads, members.values(), strict=True)
    ]


def _essence(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in config.items()
        if key != "seed" and not key.startswith(_ELSEWHERE)
    }


def _name(config: Mapping[str, Any], all_configs: Sequence[Mapping[str, Any]]) -> str:
    """Return the config's name, with the keys that set it off from its namesakes."""
    name = str(config.get("name", "run"))
    same = [each for each in all_configs if each.get("name") == config.get("name")]
    keys = sorted({key for each in same for key in each})
    differing = [k for k in keys if any(each.get(k) != config.get(k) for each in same)]
    return " ".join([name, *(f"{key}={config.get(key)}" for key in differing)])


def _written(run: Run, table: str) -> Table:
    if table != EVALUATION:
        return read_table(protocol_folder(run, table) / "table.json")
    step = weights.read_archive(run.file).metadata.get("step", "0")
    places = [run.folder / "eval" / name for name in (step, f"{step}-val")]
    for place in places:
        if (place / "metrics.json").is_file():
            return _evaluated(place / "metrics.json")
    raise FileNotFoundError(
        f"{run.path}: wanted {places[0]}/metrics.json, which training writes, "
        "got none; evaluate the run with main.py --mode=eval"
    )


def protocol_folder(run: Run, protocol: str) -> Path:
    """Return where a protocol writes for a run's weights."""
    last = run.file.name == "model_last.safetensors"
    return run.folder / "eval" / (f"{protocol}-last" if last else protocol)


def _evaluated(path: Path) -> Table:
    """Return metrics.json of an evaluation as a table.

    Raises:
        ValueError: It is something else.
    """
    try:
        record = read_json(path)
        what = f"{record['dataset']} {record['split']}"
        rows = tuple(
            (what, name, *_figures(record[key])) for key, name in _DIRECTIONS.items()
        )
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: wanted the metrics of an evaluation") from error
    return Table("", ("data set", "direction"), (*FIGURES, *SIZES), rows)


def _figures(found: Mapping[str, Any]) -> tuple[Cell, ...]:
    r1, r5, r10 = (found[name] for name in ("r1", "r5", "r10"))
    rest = (found[name] for name in ("mAP", "mINP", *SIZES))
    return r1, r5, r10, r1 + r5 + r10, *rest
