# SPDX-License-Identifier: Apache-2.0
"""How a run ends: on a signal, on an error, or because it hangs; never half."""

import faulthandler
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

from data_pipeline.hints import printable

STALLED_EXIT = 70
FAILED_EXIT = 1

CLOSE_SECONDS = 30
"""A process that fails has this long to finish a save that it has begun."""

EXIT_SECONDS = 3
"""After that it has this long to leave together with others that fail alike."""


def leave_with_the_others() -> None:
    """Make an uncaught error end this process, one of several, in bounded time.

    Otherwise a failing process waits at its exit, for minutes, for others that wait
    for it. Where all fail alike, they still leave in order. Call it once, after the
    processes have found each other.
    """
    previous = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """Tell of the error as before, then leave."""
        previous(kind, error, trace)
        leave(error)

    sys.excepthook = hook


def leave(error: BaseException) -> None:
    """Say which of several processes ends, and see that it does; alone, do nothing."""
    # To ask for the count would otherwise look for devices.
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        _write(_farewell(_who(), error))
        _end_within(EXIT_SECONDS, "")


def _end_within(seconds: int | float, last_words: str) -> None:
    """End this process after a while, with its stacks, unless it leaves by itself."""

    def end() -> None:
        """Write the last words and all stacks, and end the process."""
        if last_words:
            _write(f"\n{last_words}Not done within {seconds:g} s; all stacks follow.\n")
            faulthandler.dump_traceback(file=2, all_threads=True)
        os._exit(FAILED_EXIT)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _farewell(who: str, error: BaseException) -> str:
    return (
        f"{who} ends: {type(error).__name__}: {error}\nThe others end, too. Where the "
        "error speaks of a connection, a timeout or a peer, another process has ended "
        "or hangs, and its output has the cause. What was saved last is intact; the "
        "same command on all hosts goes on from it.\n"
    )


def _who() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


_EXCUSES = (os.path.join("jax", "_src", "compiler.py"), "bdb.py")
"""Files in which a thread may stay for any time: the compiler, debuggers."""


class StopSignal:
    """Turns SIGTERM and SIGINT into "save a checkpoint at the next step and leave".

    A context manager, entered on the main thread after `initialize_distributed`. The
    first signal only marks the stop; a second one ends the process at once. With
    several processes, JAX's preemption service takes SIGTERM and makes all of them stop
    at the same step, whichever was told; there a second SIGINT, not a second SIGTERM,
    ends a process at once.
    """

    def __init__(self) -> None:
        self.name = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        signals = [signal.SIGINT]
        if jax.process_count() == 1:
            signals.append(signal.SIGTERM)
        for each in signals:
            self._previous[each] = signal.signal(each, self._handle)
        return self

    def __exit__(self, *failure: object) -> None:
        for each, handler in self._previous.items():
            signal.signal(each, handler)
        self._previous.clear()

    def requested(self, step: int) -> bool:
        """Whether to save and leave now; all processes call it once a step.

        Args:
            step: The step that was just finished, the same on all processes.
        """
        if jax.process_count() == 1:
            return bool(self.name)
        stop = bool(multihost_utils.reached_preemption_sync_point(step))
        if stop and not self.name:
            self.name = "SIGTERM"
        return stop

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.name:
            _write(f"{name} again: leaving at once, without a checkpoint\n")
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.name = name
        _write(f"{name}: saving a checkpoint after this step; again to leave at once\n")
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # tells JAX's preemption service


class Watchdog:
    """Ends a process that has stopped making progress, and shows where it hangs.

    A stuck peer makes JAX wait for ever, without an error. A context manager, entered
    by the thread that works; report progress with `beat`. Idle time is counted in the
    watchdog's own ticks, so that a suspended process does not look stuck, and neither
    does one that compiles or that someone looks at in a debugger.
    """

    def __init__(self, seconds: int | float) -> None:
        """Set the limit, which must exceed a peer's compilation; 0: off."""
        self._seconds = seconds
        self._worker = 0
        self._ticks = 0
        self._last = "the start"
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._who, self._peers = "", False

    def __enter__(self) -> "Watchdog":
        # Asked now: later, when it is needed, JAX may no longer answer.
        self._who, self._peers = _who(), jax.process_count() > 1
        self._worker = threading.get_ident()
        if self._seconds > 0:
            self._thread = threading.Thread(
                target=self._watch, name="watchdog", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        error = failure[1]
        if isinstance(error, BaseException) and self._peers:
            # Closing the checkpoints waits for peers, which may be gone.
            limit = min(self._seconds or CLOSE_SECONDS, CLOSE_SECONDS)
            _end_within(limit, _farewell(self._who, error))

    def beat(self, what: str) -> None:
        """Report progress; `what` ("step 12") is named if nothing follows."""
        self._last = what
        self._ticks = 0

    def _watch(self) -> None:
        parts = 20
        while not self._done.wait(self._seconds / parts):
            self._ticks += not _excused(self._worker)
            if self._ticks > parts:
                self._end()

    def _end(self) -> None:
        _write(
            f"\nwatchdog: {self._who} has made no progress for "
            f"{self._seconds:g} s; the last was {self._last}. A peer that died or "
            "hangs is the usual cause. All stacks follow; the last checkpoint is "
            "intact and the same command resumes from it.\n"
        )
        faulthandler.dump_traceback(file=2, all_threads=True)
        os._exit(STALLED_EXIT)


def _excused(thread: int) -> bool:
    """Whether a thread does what may take any time."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_filename.endswith(_EXCUSES):
            return True
        frame = frame.f_back
    return False


def _write(text: str) -> None:
    text = "\n".join(map(printable, text.split("\n")))  # errors name files
    # On a terminal, in place of an open line of progress.
    text = ("\r\x1b[K" if os.isatty(2) else "") + text
    # Unbuffered: a signal may arrive inside print(), which cannot be re-entered.
    os.write(2, text.encode())
