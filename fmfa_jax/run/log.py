# SPDX-License-Identifier: Apache-2.0
"""A run's log: one class over writers."""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from fmfa_jax.run.speed import Speed
from fmfa_jax.run.writers import (
    Background,
    JsonLines,
    MLflow,
    TensorBoard,
    Terminal,
    WandB,
)


@runtime_checkable
class Writer(Protocol):
    """Where scalars go; see `fmfa_jax.run.writers`."""

    def scalars(self, step: int, epoch: int | float, values: Mapping[str, Any]) -> None:
        """Write one entry."""

    def close(self) -> None:
        """Flush and close."""


class RunLog:
    """Scalars to all writers, progress to the terminal; a context manager.

    A process that writes nothing has no writers and no terminal.
    """

    def __init__(
        self, writers: Sequence[Writer], terminal: Terminal | None, speed: Speed
    ) -> None:
        self._writers, self._terminal, self._speed = tuple(writers), terminal, speed
        self.paused, self._skipped = speed.paused, 0.0

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *failure: object) -> None:
        for each in (*self._writers, self._terminal):
            if each is not None:
                each.close()

    def step(
        self,
        step: int,
        epoch: int | float,
        values: Mapping[str, Any],
        *,
        flops: int = 0,
    ) -> dict[str, float]:
        """Write and show a training step with the speed since the last one.

        Args:
            step: The last step done.
            epoch: The same in epochs.
            values: Scalars of that step, fetched from the device.
            flops: See `Speed.lap`.

        Returns:
            The speeds that were written.
        """
        speeds = self._speed.lap(step, flops=flops)
        if self._terminal is not None:
            self._terminal.progress(step, values, speeds)
        speeds.pop("seconds_left", None)
        self._tell_of_skipped(step, values.get("skipped", 0.0))
        self.scalars(step, epoch, {**values, **speeds})
        return speeds

    def _tell_of_skipped(self, step: int, count: float) -> None:
        if count > self._skipped:
            self.say(
                f"warning: {count:.0f} step(s) skipped up to step {step}: loss or "
                "gradient was not finite"
            )
        self._skipped = count

    def scalars(self, step: int, epoch: int | float, values: Mapping[str, Any]) -> None:
        """Write one entry to all writers."""
        values = {name: float(value) for name, value in values.items()}
        for writer in self._writers:
            writer.scalars(step, epoch, values)

    def say(self, text: str) -> None:
        """Write a line of its own, below the line of progress."""
        if self._terminal is not None:
            self._terminal.say(text)


def open_log(
    folder: str | Path,
    *,
    start_step: int,
    stop_step: int,
    pairs_per_step: int,
    peak_flops: float | None = None,
    losses: Sequence[str] = (),
    tensorboard: bool = True,
    wandb: str = "",
    mlflow: str = "",
    config: Mapping[str, Any] | None = None,
    stream: io.TextIOBase | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> RunLog:
    """Open the log of a run. Only process 0 writes; elsewhere it has no writers.

    Args:
        folder: Folder of the run.
        start_step: Steps done before now; later lines of metrics.jsonl are dropped.
        stop_step: The run's last step.
        pairs_per_step: See `Speed`.
        peak_flops: See `Speed`.
        losses: See `Terminal`.
        tensorboard: Also write TensorBoard events, into folder/tensorboard.
        wandb: Project of Weights & Biases; "" for none.
        mlflow: Experiment of MLflow; "" for none.
        config: What these two are told of the run: dotted key -> value.
        stream: Where progress goes; standard output by default.
        clock: Seconds, for tests.
    """
    speed = Speed(
        start_step=start_step,
        stop_step=stop_step,
        pairs_per_step=pairs_per_step,
        peak_flops=peak_flops,
        clock=clock,
    )
    if jax.process_index() != 0:
        return RunLog((), None, speed)
    folder, terminal = (
        Path(folder),
        Terminal(stop_step=stop_step, losses=losses, stream=stream),
    )
    writers: list[Writer] = [JsonLines(folder, start_step=start_step, say=terminal.say)]
    if tensorboard:
        writers.append(TensorBoard(folder, say=terminal.say))
    told = {"name": folder.name, "config": config or {}}
    if wandb:
        opened = partial(WandB, folder, project=wandb, **told)
        writers.append(Background("Weights & Biases", opened, terminal.say))
    if mlflow:
        opened = partial(MLflow, folder, experiment=mlflow, **told)
        writers.append(Background("MLflow", opened, terminal.say))
    return RunLog(writers, terminal, speed)
