# SPDX-License-Identifier: Apache-2.0
"""A table of results: as Markdown to read, as CSV and JSON for other programs."""

import csv
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.regular import read_json
from fmfa_jax.evaluation.metrics import RetrievalMetrics
from fmfa_jax.evaluation.published import Published
from fmfa_jax.files import write_json, write_text, writing

FIGURES = ("R1", "R5", "R10", "rSum", "mAP", "mINP")
"""Columns of retrieval figures, in percent; `figures` fills them."""
SIZES = ("queries", "gallery")
DRAWN = ("R1", "mAP", "mSD")
"""Columns that a figure of a table shows."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of several runs."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[int | float]) -> "float | int | Spread":
        """Return the spread of several values; one, or equal counts, as it is."""
        if len(values) == 1 or (type(values[0]) is int and len(set(values)) == 1):
            return values[0]
        return cls(statistics.fmean(values), statistics.stdev(values))

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.deviation:.2f}"


Cell = str | int | float | Spread | None


@dataclass(frozen=True)
class Table:
    """What a protocol found.

    Attributes:
        title: What was measured.
        labels: Columns that name a row.
        figures: Columns of what was measured.
        rows: A cell for each label, then for each figure; None for what is not known.
        notes: Whole sentences below the table.
        lines: Whether a figure draws curves, over the last label, instead of bars.
    """

    title: str
    labels: tuple[str, ...]
    figures: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    lines: bool = False

    def is_sound(self) -> bool:
        """Whether each row has as many cells as there are columns, and of their kinds.

        A table that was read from a file may be anything.
        """
        texts = (self.title, *self.labels, *self.figures, *self.notes)
        labels, width = len(self.labels), len(self.labels) + len(self.figures)
        cells = [cell for row in self.rows for cell in row]
        return (
            all(isinstance(text, str) for text in texts)
            and all(len(row) == width for row in self.rows)
            and all(isinstance(cell, Cell) for cell in cells)
            and not any(isinstance(x, str) for r in self.rows for x in r[labels:])
        )

    @property
    def markdown(self) -> str:
        """The aligned table, with title and notes."""
        rows = [(*self.labels, *self.figures), *self.rows]
        text = aligned([[_shown(cell) for cell in row] for row in rows])
        notes = "".join(f"\n{note}\n" for note in self.notes)
        return f"# {self.title}\n\n{text}{notes}"

    def write(self, folder: str | Path) -> None:
        """Write table.md, table.csv and table.json into a folder."""
        write_text(Path(folder) / "table.md", self.markdown)
        write_json(Path(folder) / "table.json", asdict(self))
        with writing(Path(folder) / "table.csv") as stream:
            csv.writer(stream, lineterminator="\n").writerows(self._plain())

    def _plain(self) -> Iterable[list[Any]]:
        """Yield header and rows, a spread in two columns."""
        columns = list(zip((*self.labels, *self.figures), *self.rows, strict=True))
        plain: list[Sequence[Any]] = []
        for name, *cells in columns:
            spread = any(isinstance(cell, Spread) for cell in cells)
            plain.append([name, *map(mean_of, cells)])
            if spread:
                plain.append([f"{name} deviation", *map(deviation_of, cells)])
        return map(list, zip(*plain, strict=True))


def read_table(path: str | Path) -> Table:
    """Read a table.json of `Table.write`.

    Raises:
        ValueError: It is something else.
        OSError: It cannot be read.
    """
    try:
        found = read_json(path)
        rows = tuple(tuple(row) for row in found.pop("rows"))
        names = ("labels", "figures", "notes")
        known = {name: tuple(found.pop(name)) for name in names}
        table = Table(**found | known, rows=rows)
        if not table.is_sound():
            raise TypeError("rows of other lengths or kinds")
        return table
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: wanted a table that a protocol wrote") from error


def figures(metrics: RetrievalMetrics | Published) -> tuple[float | None, ...]:
    """Return the cells of `FIGURES`."""
    names = ("r1", "r5", "r10", "rSum", "mAP", "mINP")
    return tuple(getattr(metrics, name) for name in names)


def sizes(metrics: RetrievalMetrics | Published) -> tuple[int | None, ...]:
    """Return the cells of `SIZES`."""
    return tuple(getattr(metrics, name, None) for name in SIZES)


def mean_of(cell: Cell) -> str | int | float | None:
    """Return a cell, or the mean of a spread."""
    return cell.mean if isinstance(cell, Spread) else cell


def deviation_of(cell: Cell) -> float | None:
    """Return the deviation of a spread, None for other cells."""
    return cell.deviation if isinstance(cell, Spread) else None


def percent(value: float | None) -> str:
    """Return a figure as tables show it."""
    return "-" if value is None else f"{value:.2f}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table with aligned columns, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    align: list[Callable[[str, int], str]] = [str.ljust] + [str.rjust] * (
        len(widths) - 1
    )
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = zip(align, row, widths, strict=True)
        lines.append("| " + " | ".join(put(cell, n) for put, cell, n in cells) + " |\n")
    return "".join(lines)


def _shown(cell: Cell) -> str:
    if cell is None or isinstance(cell, float):
        return percent(cell)
    return str(cell).replace("|", "\\|")
