# SPDX-License-Identifier: Apache-2.0
"""Curves of a run: losses, learning rate and retrieval over the epochs."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_pipeline.hints import printable
from data_pipeline.regular import read_json, read_regular
from fmfa_jax import plots
from fmfa_jax.run.writers.jsonl import entry

_SHOWN = ("r1", "mAP")
_LARGEST = sys.float_info.max

Record = Mapping[str, float]


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Read metrics.jsonl: one record per line with step, epoch and named numbers.

    A half-written last line, left by a killed run, is ignored, and so are numbers that
    were not finite, which are stored as null.

    Raises:
        ValueError: Another line is not a JSON object with a step.
        OSError: The file cannot be read.
    """
    lines = read_regular(path).split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        values = entry(line)
        if not values and number < len(lines):
            came = printable(line[:60].decode(errors="replace"))
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with a step, got {came}"
            )
        if values:
            records.append({k: float(v) for k, v in values.items() if _is_number(v)})
    return records


def _is_number(value: object) -> bool:
    # JSON has whole numbers that no float holds.
    return isinstance(value, int | float) and abs(value) <= _LARGEST


def write_curves(metrics: str | Path, path: str | Path) -> Path:
    """Plot losses, learning rate, and R1 and mAP of each evaluated split by epoch.

    Args:
        metrics: metrics.jsonl of the run. The config.json beside it names the losses;
            without one, only their total is drawn.
        path: The PNG.

    Raises:
        ValueError: The file has no record.
    """
    records = read_metrics(metrics)
    if not records:
        raise ValueError(f"{metrics} has no record yet: nothing to plot")
    figure = Figure(figsize=(9, 9.5), layout="constrained")
    loss, rate, retrieval = figure.subplots(
        3, 1, height_ratios=(3, 1.5, 3), sharex=True
    )
    configured = read_losses(Path(metrics).with_name("config.json"))
    _draw(loss, records, loss_names(records, configured), "loss", scale="log")
    _draw(rate, records, [n for n in _names(records) if n == "lr"], "learning rate")
    shown = [n for n in _names(records) if n.rsplit("/", 1)[-1] in _SHOWN]
    _draw(retrieval, records, shown, "R1 and mAP, percent")
    retrieval.set_xlabel("epoch")
    return plots.save(figure, path)


def read_losses(path: str | Path) -> list[str]:
    """Return the names of the losses in a run's config.json, none if it is missing.

    Raises:
        ValueError: It is no config.
    """
    if not Path(path).is_file():
        return []
    try:
        config = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: wanted the config of a run, got: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: wanted the config of a run")
    prefix = "losses."
    return [key.removeprefix(prefix) for key in config if key.startswith(prefix)]


def loss_names(records: Sequence[Record], configured: Sequence[str]) -> list[str]:
    """Return the losses among the recorded numbers, starting with the total."""
    found = [name for name in _names(records) if name in ("total", *configured)]
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
    """Draw the named numbers by epoch, or say that there are none."""
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
