# SPDX-License-Identifier: Apache-2.0
"""How a process ends that is told to stop before its first step: soon, come what may.

Without JAX, since signals come while that is imported. From the first step on
`lifecycle.StopSignal` takes them.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from data_pipeline.command import say
from fmfa_jax.machines.launchers import launch

STOPPED = os.EX_TEMPFAIL
"""Exit code, 75: the same command may be tried again."""
ALONE_SECONDS = 10
"""For a process that is alone to leave by itself."""
FIRST_SECONDS = 3
"""By how much the first of several outlives its signal."""


class Stop(SystemExit):
    """Raised in the main thread where a signal finds it."""


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Around a program: SIGINT and SIGTERM end it with `STOPPED`, in bounded time.

    What is raised in the main thread may get lost, since libraries catch everything in
    places; and one that waits for other processes in a library hears no signal at all.
    So a thread ends the process when the main one has had its time.

    Of several processes, which are told within a moment, the first ends last, for JAX
    aborts those that lose it. None takes leave of the others at JAX's barrier: some may
    not come to it.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    untold = threading.Lock()

    def tell(number: int) -> None:
        """Say once that it stops."""
        if untold.acquire(blocking=False):
            name = signal.Signals(number).name
            say(f"{name}: stopped; the same command starts again", sys.stderr)

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        """Unwind the main thread."""
        tell(number)
        leaving()
        raise Stop(STOPPED)

    def watch() -> None:
        """End the process some time after a signal that is for `stop`."""
        while True:
            number = os.read(reading, 1)[0]
            if untold.locked() or signal.getsignal(number) is stop:
                break  # and no other handler has taken over
        time.sleep(_seconds())
        tell(number)
        os._exit(STOPPED)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # What a forked process is told is not for this one.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=watch, name="stop", daemon=True).start()
    try:
        yield
    except Stop:
        # A library may have taken the wakeup descriptor: `watch` may know of nothing.
        if (seconds := _seconds()) != ALONE_SECONDS:
            time.sleep(seconds)
            sys.stdout.flush()
            os._exit(STOPPED)
        raise


def leaving() -> None:
    """Let no SIGTERM change the exit code while Python takes its leave.

    It gives signals back to the system before it has ended.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _seconds() -> float:
    """From a signal to the end of this process, one among all."""
    try:
        found = launch(os.environ)
    except ValueError:  # of which the program will tell
        return ALONE_SECONDS
    if found.launcher == "none":
        return ALONE_SECONDS
    return 0 if found.arguments.get("process_id") else FIRST_SECONDS
