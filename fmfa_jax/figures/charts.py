# SPDX-License-Identifier: Apache-2.0
"""The figure of any table of results: bars, or curves over numbers."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmfa_jax.evaluation.tables import DRAWN, Table, deviation_of, mean_of
from fmfa_jax.figures import plots
from fmfa_jax.figures.canvas import FAINT, INK, PAPER

_FILLS = (("#404040", ""), (PAPER, "////"), ("#c0c0c0", ".."))
_LONGEST = 60  # letters of a label


def write_chart(table: Table, path: str | Path) -> Path:
    """Draw the columns `DRAWN` of a table.

    Bars differ by hatching and curves by dash and marker, not by colour. Where runs
    were averaged, their deviation is drawn.

    Args:
        table: What to draw.
        path: The PNG.
    """
    height = 4.0 if table.lines else 1.4 + 0.34 * len(table.rows)
    figure = Figure(figsize=(8, min(height, 80)), layout="constrained")
    axes = figure.subplots()
    shown = [name for name in DRAWN if name in table.figures]
    (_draw_lines if table.lines else _draw_bars)(axes, table, shown)
    axes.set_title(table.title, fontsize=9)
    axes.legend(fontsize=8)
    return plots.save(figure, path)


def _draw_bars(axes: Axes, table: Table, shown: list[str]) -> None:
    thick, rows = 0.8 / len(shown), np.arange(len(table.rows))
    for number, name in enumerate(shown):
        cells = _column(table, name)
        fill, hatch = _FILLS[number]
        wide = [np.nan if cell is None else mean_of(cell) for cell in cells]
        spread = [deviation_of(cell) or 0.0 for cell in cells]
        axes.barh(
            rows + (number - (len(shown) - 1) / 2) * thick,
            wide,
            thick,
            xerr=spread if any(spread) else None,
            error_kw={"ecolor": FAINT, "capsize": 2},
            facecolor=fill,
            edgecolor=INK,
            hatch=hatch,
            label=name,
        )
    names = [", ".join(map(str, row[: len(table.labels)])) for row in table.rows]
    axes.set_yticks(rows, [name[:_LONGEST] for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("percent")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


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
        plots.line(axes, x, y, number=number, name=what[:_LONGEST])
    axes.set_xlabel(table.labels[last])
    axes.set_ylabel("percent")
    axes.set_ylim(bottom=0)
    axes.grid(color="#dddddd", linewidth=0.6)


def _column(table: Table, name: str) -> list:
    place = len(table.labels) + table.figures.index(name)
    return [row[place] for row in table.rows]
