# SPDX-License-Identifier: Apache-2.0
"""The style of all plots: lines differ by dash and marker, not only by colour."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmfa_jax.files import replacing

INK, PAPER = "#000000", "#ffffff"
# From dark to light, distinct in greyscale and to colour-blind readers.
COLOURS = ("#000000", "#0060ad", "#c8102e", "#00855a", "#8a5a00", "#7a3fa0", "#707070")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")


def line(axes: Axes, x: list[float], y: list[float], *, number: int, name: str) -> None:
    """Draw curve `number` of the axes with its own colour, dash and marker."""
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
    """Write a PNG; see `files.replacing`."""
    with replacing(path) as draft:
        figure.savefig(draft, format="png", dpi=110)
    return Path(path)
