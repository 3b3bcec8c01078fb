# SPDX-License-Identifier: Apache-2.0
"""What happened in a run: losses, learning rate, and retrieval over the epochs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmfa_jax.figures import plots
from fmfa_jax.methods import fmfa
from fmfa_jax.methods.weak import recipe

_LOSSES = ("total", *fmfa.TERMS, *recipe.TERMS)
_SHOWN = ("r1", "mAP")

Record = Mapping[str, float]


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Read metrics.jsonl: one record a line with step, epoch and named numbers.

    A last line that a killed run left half-written is no record; what was not finite
    stands there as null and is left out.

    Raises:
        ValueError: another line is not a JSON object.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    records = []
    for number, text in enumerate(lines, 1):
        try:
            values = dict(json.loads(text))
        except (ValueError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{path}, line {number}: wanted a JSON object, got {text[:60]!r}"
            ) from error
        records.append({k: float(v) for k, v in values.items() if v is not None})
    return records


def write_curves(metrics: str | Path, path: str | Path) -> Path:
    """Plot a run's metrics.jsonl: three panels over the epochs.

    The panels hold the losses, the learning rate, and R1 and mAP of each split that was
    evaluated ("val/r1").

    Args:
        metrics: the run's metrics.jsonl.
        path: the PNG.

    Raises:
        ValueError: the file holds no record.
    """
    records = read_metrics(metrics)
    if not records:
        raise ValueError(f"{metrics} holds no record yet: nothing to plot")
    figure = Figure(figsize=(9, 9.5), layout="constrained")
    loss, rate, retrieval = figure.subplots(
        3, 1, height_ratios=(3, 1.5, 3), sharex=True
    )
    _draw(loss, records, loss_names(records), "loss", scale="log")
    _draw(rate, records, [n for n in _names(records) if n == "lr"], "learning rate")
    shown = [n for n in _names(records) if n.rsplit("/", 1)[-1] in _SHOWN]
    _draw(retrieval, records, shown, "R1 and mAP, percent")
    retrieval.set_xlabel("epoch")
    return plots.save(figure, path)


def loss_names(records: Sequence[Record]) -> list[str]:
    """Return the losses among the numbers: the total, then the terms of a method."""
    found = [name for name in _names(records) if name in _LOSSES]
    return sorted(found, key=lambda name: name != "total")


def _names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))


def _draw(
    axes: Axes,
    records: Sequence[Record],
    names: Sequence[str],
    label: str,
    *,
    scale: str = "linear",
) -> None:
    """Draw the named numbers over the epochs; say so where there are none."""
    axes.set_ylabel(label)
    axes.grid(color="#dddddd", linewidth=0.6)
    if not names:
        where = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(0.5, 0.5, "none in metrics.jsonl", **where)
        return
    lowest = float("inf")
    for number, name in enumerate(names):
        found = [record for record in records if name in record]
        epochs = [record.get("epoch", record.get("step", 0.0)) for record in found]
        values = [record[name] for record in found]
        lowest = min(lowest, *values)
        plots.line(axes, epochs, values, number=number, name=name)
    if scale == "log" and lowest > 0:
        axes.set_yscale("log")
    if len(names) == 1:
        return  # the axis names it
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
