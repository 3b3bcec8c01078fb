# SPDX-License-Identifier: Apache-2.0
"""The figure of any table of results: bars, or curves over numbers."""

from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmfa_jax import plots
from fmfa_jax.evaluation.tables import DRAWN, Table, deviation_of, mean_of

_FILLS = (("#8c8c8c", ""), (plots.PAPER, "////"), ("#dcdcdc", ".."))
_LONGEST = 60  # letters of a label


def write_chart(table: Table, path: str | Path) -> Path:
    """Draw the columns `DRAWN` of a table.

    Bars differ by hatching and curves by dash and marker, not by colour. Where runs
    were averaged, their deviation is drawn.

    Args:
        table: What to draw.
        path: The PNG.
    """
    height = 4.0 if table.lines else 1.6 + 0.34 * len(table.rows)
    figure = Figure(figsize=(9, min(height, 80)), layout="constrained")
    axes = figure.subplots()
    shown = [name for name in DRAWN if name in table.figures]
    (_draw_lines if table.lines else _draw_bars)(axes, table, shown)
    title = "\n".join(wrap(table.title, 100))
    figure.suptitle(title, fontsize=9, parse_math=False)
    figure.legend(fontsize=8, loc="outside right upper")
    return plots.save(figure, path)


def _draw_bars(axes: Axes, table: Table, shown: list[str]) -> None:
    thick, rows = 0.8 / len(shown), np.arange(len(table.rows))
    for number, name in enumerate(shown):
        cells = _column(table, name)
        fill, hatch = _FILLS[number]
        spread = [deviation_of(cell) or 0.0 for cell in cells]
        axes.barh(
            rows + (number - (len(shown) - 1) / 2) * thick,
            [np.nan if cell is None else mean_of(cell) for cell in cells],
            thick,
            xerr=spread if any(spread) else None,
            error_kw={"ecolor": plots.INK, "capsize": 2},
            facecolor=fill,
            edgecolor=plots.INK,
            hatch=hatch,
            label=name,
        )
    names, shared = _names(table)
    axes.set_yticks(rows, names, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(f"percent{shared and f' ({shared})'}")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _names(table: Table) -> tuple[list[str], str]:
    """Return the name of each row, and apart from them what all rows share."""
    labels = list(zip(*(row[: len(table.labels)] for row in table.rows), strict=True))
    differing = [column for column in labels if len(set(column)) > 1] or labels[-1:]
    shared = [str(column[0]) for column in labels if column not in differing]
    names = [
        ", ".join(filter(None, map(str, row))) for row in zip(*differing, strict=True)
    ]
    return [_short(name) for name in names], _short(", ".join(shared))


def _draw_lines(axes: Axes, table: Table, shown: list[str]) -> None:
    """Draw a curve for each figure and each value of the labels before the last."""
    last = len(table.labels) - 1
    kinds = list(dict.fromkeys(row[:last] for row in table.rows))
    curves = [(kind, name) for kind in kinds for name in shown]
    for number, (kind, name) in enumerate(curves):
        rows = [row for row in table.rows if row[:last] == kind]
        place = len(table.labels) + table.figures.index(name)
        x, y = ([float(mean_of(row[at])) for row in rows] for at in (last, place))
        what = ", ".join([*map(str, kind), name])
        plots.line(axes, x, y, number=number, name=_short(what))
    axes.set_xlabel(table.labels[last])
    axes.set_ylabel("percent")
    axes.set_ylim(bottom=0)
    axes.grid(color="#dddddd", linewidth=0.6)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def _column(table: Table, name: str) -> list:
    place = len(table.labels) + table.figures.index(name)
    return [row[place] for row in table.rows]
