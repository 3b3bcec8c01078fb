# SPDX-License-Identifier: Apache-2.0
"""What a person sees: one line of progress, and below it what was said."""

import io
import shutil
import sys
from collections.abc import Mapping
from typing import Any


class Terminal:
    """Shows progress: on a terminal one line is replaced, elsewhere lines are added."""

    def __init__(self, *, stop_step: int, stream: io.TextIOBase | None = None) -> None:
        """Write nothing yet.

        Args:
            stop_step: The run's last step.
            stream: Where to write; standard output by default.
        """
        self._stop_step = stop_step
        self._stream: Any = sys.stdout if stream is None else stream
        self._open = False

    def progress(
        self, step: int, values: Mapping[str, float], speeds: Mapping[str, float]
    ) -> None:
        """Show a step, its values, and the speeds that `Speed.lap` gave."""
        shown = [f"step {step}/{self._stop_step}"]
        shown += [f"{name} {_short(value)}" for name, value in values.items()]
        if speeds:
            shown += [
                f"{speeds['steps_per_second']:.3g} steps/s",
                f"{speeds['pairs_per_second']:.4g} pairs/s",
            ]
            if "mfu" in speeds:
                shown += [f"MFU {speeds['mfu']:.1%}"]
            shown += [f"ETA {_duration(speeds['seconds_left'])}"]
        self._show("  ".join(shown))

    def say(self, text: str) -> None:
        """Write a line of its own, below the line of progress."""
        self.close()
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """End the line of progress."""
        if self._open:
            self._stream.write("\n")
            self._open = False

    def _show(self, line: str) -> None:
        if not self._stream.isatty():
            print(line, file=self._stream, flush=True)
            return
        width = shutil.get_terminal_size().columns
        # Back to the first column, the line, clear what the old one had beyond it.
        self._stream.write(f"\r{line[: width - 1]}\x1b[K")
        self._stream.flush()
        self._open = True


def _short(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
