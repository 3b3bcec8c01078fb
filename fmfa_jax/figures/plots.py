# SPDX-License-Identifier: Apache-2.0
"""How all plots look: lines that differ by dash and marker, not by colour alone."""

import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Dark to light, so that they stay apart in grey, and told apart by colour-blind eyes.
COLOURS = ("#000000", "#0060ad", "#c8102e", "#00855a", "#8a5a00", "#7a3fa0", "#707070")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")


def line(axes: Axes, x: list[float], y: list[float], *, number: int, name: str) -> None:
    """Draw curve `number` of these axes in its own colour, dash and marker."""
    axes.plot(
        x,
        y,
        color=COLOURS[number % len(COLOURS)],
        linestyle=DASHES[number % len(DASHES)],
        marker=MARKERS[number % len(MARKERS)],
        markevery=max(1, len(x) // 8),
        markersize=4,
        linewidth=1.3,
        label=name,
    )


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG that appears whole under its name, or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=110)
    os.replace(temporary, path)
    return path
