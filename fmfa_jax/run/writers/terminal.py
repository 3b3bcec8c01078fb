# SPDX-License-Identifier: Apache-2.0
"""What a person sees: one line of progress, and below it what was said."""

import io
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.command import say

_BAR = range(8, 33)  # its least and its greatest length
_GAP = "  "


class Terminal:
    """Shows progress: on a terminal one line is replaced, elsewhere lines are added."""

    def __init__(
        self,
        *,
        stop_step: int,
        losses: Sequence[str] = (),
        stream: io.TextIOBase | None = None,
    ) -> None:
        """Write nothing yet.

        Args:
            stop_step: The run's last step.
            losses: Names of the values that a terminal shows.
            stream: Where to write; standard output by default.
        """
        self._stop_step, self._losses = stop_step, losses
        self._stream: Any = sys.stdout if stream is None else stream
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._open = False

    def progress(
        self, step: int, values: Mapping[str, float], speeds: Mapping[str, float]
    ) -> None:
        """Show a step, its values, and the speeds that `Speed.lap` gave."""
        if not self._live:
            print(self._row(step, values, speeds), file=self._stream, flush=True)
            return
        width = shutil.get_terminal_size().columns - 1  # the last one would wrap
        line = self._line(step, values, speeds, width)
        # Back to the first column, the line, clear what the old one had beyond it.
        self._stream.write(f"\r{line}\x1b[K")
        self._stream.flush()
        self._open = True

    def say(self, text: str) -> None:
        """Write lines of their own, below the line of progress."""
        self.close()
        say(text, self._stream)

    def close(self) -> None:
        """End the line of progress."""
        if self._open:
            self._stream.write("\n")
            self._open = False

    def _row(
        self, step: int, values: Mapping[str, float], speeds: Mapping[str, float]
    ) -> str:
        """The line of a log: everything."""
        shown = [f"step {step}/{self._stop_step}"]
        shown += [f"{name} {_short(value)}" for name, value in values.items()]
        if speeds:
            shown += [f"{speeds['steps_per_second']:.3g} steps/s", _pairs(speeds)]
        if "mfu" in speeds:
            shown += [f"MFU {speeds['mfu']:.1%}"]
        return _GAP.join([*shown, *_left(speeds)])

    def _line(
        self,
        step: int,
        values: Mapping[str, float],
        speeds: Mapping[str, float],
        width: int,
    ) -> str:
        """The line of a terminal: what fits of it, whole.

        Where room is short the bar goes first, then the losses from the last one, then
        the pace.
        """
        share = min(step / self._stop_step, 1.0)
        head = [f"{share:4.0%}", f"step {step}/{self._stop_step}"]
        pace = [*([_pairs(speeds)] if speeds else []), *_left(speeds)]
        names = [name for name in self._losses if name in values]
        losses = [f"{name} {_short(values[name])}" for name in names]
        room = width - len(_GAP.join(head))
        pace, room = _fitting(pace[::-1], room)
        losses, room = _fitting(losses, room)
        line = _GAP.join([*head, *losses, *pace[::-1]])
        return (_bar(share, room) + line)[:width]


def _fitting(fields: list[str], room: int) -> tuple[list[str], int]:
    """The first fields that fit behind a gap each, and the room that is left."""
    kept = []
    for field in fields:
        if len(_GAP) + len(field) > room:
            return kept, 0
        kept.append(field)
        room -= len(_GAP) + len(field)
    return kept, room


def _bar(share: float, room: int) -> str:
    """As long a bar as there is room for, or none."""
    length = min(room - len("[] "), _BAR[-1])
    if length < _BAR[0]:
        return ""
    return f"[{'#' * int(share * length):.<{length}}] "


def _pairs(speeds: Mapping[str, float]) -> str:
    return f"{speeds['pairs_per_second']:.4g} pairs/s"


def _left(speeds: Mapping[str, float]) -> list[str]:
    if "seconds_left" not in speeds:
        return []
    minutes, seconds = divmod(round(speeds["seconds_left"]), 60)
    return [f"ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}"]


def _short(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
