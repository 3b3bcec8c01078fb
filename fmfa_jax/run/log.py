# SPDX-License-Identifier: Apache-2.0
"""What a run writes down: metrics.jsonl, TensorBoard events, progress, small files."""

import io
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

METRICS = "metrics.jsonl"


def write_text(path: str | Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new one, never half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: str | Path, value: Any) -> None:
    """Write valid JSON atomically; what is not finite becomes null."""
    write_text(path, json.dumps(valid_json(value), indent=2, allow_nan=False) + "\n")


def write_table(
    path: str | Path, header: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Write tab-separated values atomically; tabs and line ends become spaces."""
    lines = ["\t".join(_cell(value) for value in row) for row in (header, *rows)]
    write_text(path, "\n".join(lines) + "\n")


def valid_json(value: Any) -> Any:
    """Return `value` in JSON's own types; NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(key): valid_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [valid_json(each) for each in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    number = float(value)
    return number if math.isfinite(number) else None


class RunLog:
    """The writers of one run. Only process 0 writes; elsewhere all calls do nothing.

    A context manager. JAX computes ahead of Python: call `scalars` and `progress`
    with values that were already fetched from the device, at log intervals only; then
    the clock between two calls of `progress` spans exactly the steps between them.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        start_step: int,
        stop_step: int,
        pairs_per_step: int,
        peak_flops: float | None = None,
        tensorboard: str = "events",
        stream: io.TextIOBase | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Open the files; lines of metrics.jsonl after `start_step` are dropped.

        Args:
            folder: the run's folder.
            start_step: steps done before now; they are computed again after it.
            stop_step: the run's last step, for the ETA.
            pairs_per_step: over all devices of all processes.
            peak_flops: a second, of all devices together; None: not known.
            tensorboard: events (into folder/tensorboard) | none.
            stream: where progress goes, standard output by default.
            clock: seconds, for tests.
        """
        if tensorboard not in ("events", "none"):
            raise ValueError(f"wanted tensorboard events | none, got {tensorboard!r}")
        self._folder = Path(folder)
        self._writes = jax.process_index() == 0
        self._stream: Any = sys.stdout if stream is None else stream
        self._stop_step, self._pairs = stop_step, pairs_per_step
        self._peak_flops = peak_flops
        self._timer = _Timer(start_step, clock)
        self._open_line = ""
        self._events: Any = None
        if self._writes:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._drop_lines_after(start_step)
            self._metrics = (self._folder / METRICS).open("a", encoding="utf-8")
            if tensorboard == "events":
                self._open_events()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def scalars(self, step: int, epoch: int | float, values: Mapping[str, Any]) -> None:
        """Append one line {"step", "epoch", name: value} and TensorBoard scalars."""
        if not self._writes:
            return
        numbers = {name: float(value) for name, value in values.items()}
        line = valid_json({"step": step, "epoch": epoch, **numbers})
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
        self._metrics.flush()
        if self._events is not None:
            self._events.write_scalars(step, numbers)

    def progress(
        self, step: int, values: Mapping[str, Any], *, flops: int = 0
    ) -> dict[str, float]:
        """Show one line: step, `values`, speeds, ETA.

        On a terminal the line replaces the one before, elsewhere it is a new one.

        Args:
            step: the last one done.
            values: of that step.
            flops: that the model took since the last call, over all devices.

        Returns:
            What was reached since the last call, for `scalars`: "steps_per_second",
            "pairs_per_second", with `flops` "model_flops_per_second" and, where the
            devices' peak is known, their share of it, "mfu"; empty without a step.
        """
        lap = self._timer.lap(step)
        speeds = {} if lap is None else self._speeds(*lap, flops)
        shown = [f"step {step}/{self._stop_step}"]
        shown += [f"{name} {_short(value)}" for name, value in values.items()]
        if speeds:
            shown += [
                f"{speeds['steps_per_second']:.3g} steps/s",
                f"{speeds['pairs_per_second']:.4g} pairs/s",
            ]
            if "mfu" in speeds:
                shown += [f"MFU {speeds['mfu']:.1%}"]
            left = self._timer.seconds(self._stop_step - step)
            shown += [f"ETA {_duration(left)}"]
        self._show("  ".join(shown))
        return speeds

    def _speeds(self, steps: int, seconds: float, flops: int) -> dict[str, float]:
        rate = steps / seconds
        speeds = {"steps_per_second": rate, "pairs_per_second": rate * self._pairs}
        if flops:
            speeds["model_flops_per_second"] = flops / seconds
            if self._peak_flops:
                speeds["mfu"] = flops / seconds / self._peak_flops
        return speeds

    def say(self, text: str) -> None:
        """Write a line of its own, below the progress line."""
        if self._writes:
            self._end_line()
            print(text, file=self._stream, flush=True)

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Keep what happens inside (an evaluation) out of steps/s."""
        self._timer.pause()
        try:
            yield
        finally:
            self._timer.resume()

    def write_json(self, name: str, value: Any) -> None:
        """Write folder/name (config.json, environment.json)."""
        if self._writes:
            write_json(self._folder / name, value)

    def write_table(
        self, name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Write folder/name (bad_images.tsv)."""
        if self._writes:
            write_table(self._folder / name, header, rows)

    def close(self) -> None:
        """Flush and close everything."""
        if self._writes and not self._metrics.closed:
            self._end_line()
            self._metrics.close()
            if self._events is not None:
                self._events.close()

    def _drop_lines_after(self, step: int) -> None:
        path = self._folder / METRICS
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) < len(lines):
            write_text(path, "".join(line + "\n" for line in kept))
            self.say(
                f"{METRICS}: dropped {len(lines) - len(kept)} lines after step {step}, "
                "which are computed again"
            )

    def _open_events(self) -> None:
        try:
            import clu.metric_writers
            import tensorflow as tf
        except ImportError as error:
            self.say(f"no TensorBoard events ({error}); {METRICS} has the same numbers")
            return
        # Otherwise TensorFlow takes the accelerator's memory at its first operation.
        tf.config.set_visible_devices([], "GPU")
        self._events = clu.metric_writers.SummaryWriter(
            str(self._folder / "tensorboard")
        )

    def _show(self, line: str) -> None:
        if not self._writes:
            return
        if not self._stream.isatty():
            print(line, file=self._stream, flush=True)
            return
        width = shutil.get_terminal_size().columns
        self._open_line = line[: width - 1]
        # Back to the first column, the line, clear what the old one had beyond it.
        self._stream.write(f"\r{self._open_line}\x1b[K")
        self._stream.flush()

    def _end_line(self) -> None:
        if self._open_line:
            self._stream.write("\n")
            self._open_line = ""


class _Timer:
    """Steps and seconds; the first lap, which compiles, does not count for the ETA."""

    def __init__(self, step: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._step, self._time = step, clock()
        self._paused_at = 0.0
        self._laps: list[tuple[int, float]] = []

    def lap(self, step: int) -> tuple[int, float] | None:
        """Return steps and seconds since the last lap, None without a step."""
        now = self._clock()
        steps, seconds = step - self._step, now - self._time
        self._step, self._time = step, now
        if steps <= 0 or seconds <= 0:
            return None
        self._laps.append((steps, seconds))
        return steps, seconds

    def seconds(self, steps: int) -> float:
        """Return what `steps` steps will take."""
        laps = self._laps[1:] or self._laps
        return steps * sum(lap[1] for lap in laps) / sum(lap[0] for lap in laps)

    def pause(self) -> None:
        self._paused_at = self._clock()

    def resume(self) -> None:
        self._time += self._clock() - self._paused_at


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # torn by a kill


def _cell(value: Any) -> str:
    return " ".join(str(value).split())


def _short(value: Any) -> str:
    number = float(value)
    return f"{number:.0f}" if number.is_integer() else f"{number:.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
