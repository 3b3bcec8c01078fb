# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a run folder that lies in an object store.

    URL/locks/<n>    {host, pid, since, where, token, beat}; the greatest n counts

Who wants the folder creates the next number, on the condition that it does not exist:
of two, one succeeds. A holder writes its object anew every `REFRESH` seconds, and a
last time, with "left", when it ends. One that leaves without a word is known by its
silence: whoever comes watches the object for `PATIENCE` seconds by its own clock, so
that no two clocks are compared, and takes the next number if it has not changed. On the
host of a killed process this is not waited for: there the kernel has released the lock
of the local folder, which every holder has too (see `lock`).

A holder that was silent for longer, as if it were dead, finds a greater number before
it seals its next checkpoint, and ends. Only between that look and the seal could both
write; they compute the same bits. Where a store does not know the condition and takes
both of two that come at once, one finds the other's name under its number, and ends.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.buckets import Bucket, StoreError
from data_pipeline.hints import printable
from fmfa_jax.run.lock import LOCK, InUseError, holder, named, parsed

LOCKS = "locks"
REFRESH, PATIENCE = 15.0, 60.0
"""Seconds."""


class BucketLock:
    """The lock of a run folder in a store; of the process that holds the local lock.

    Of a run of several processes that is the first, which answers for all.
    """

    def __init__(
        self,
        bucket: Bucket,
        folder: Path,
        *,
        say: Callable[[str], None],
        refresh: float = REFRESH,
        patience: float = PATIENCE,
    ) -> None:
        """Ask nothing of the store yet.

        Args:
            bucket: The run folder.
            folder: The local one, whose lock this process holds.
            say: Told of a holder that did not leave in order.
            refresh: Seconds between two signs of life.
            patience: Seconds of silence after which a holder counts as dead; several
                times `refresh`.
        """
        self._bucket, self._say = bucket, say
        self._refresh, self._patience = refresh, patience
        self._me = holder() | {"where": _where(folder), "token": uuid.uuid4().hex}
        self._beats = 0
        self._number = 0
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Take the lock; waits if the last holder may be dead.

        Raises:
            InUseError: Names the host and process that hold it, and since when.
            StoreError: The store cannot be read or written.
        """
        last, held = self._newest()
        if last and "left" not in held and held.get("where") != self._me["where"]:
            held = self._outwait(last, held)
        if last and "left" not in held:
            self._say(
                f"note: {named(held)} left {self._name} without a word; its place is "
                "taken"
            )
        if not self._bucket.create(_object(last + 1), self._sign()):
            raise self._in_use(self._newest()[1])
        self._number = last + 1
        old = [name for name in self._bucket.list(LOCKS) if _number(name) <= last]
        self._bucket.remove(old)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Look whether the lock is still ours.

        Raises:
            InUseError: Another process has taken it.
        """
        number, held = self._newest()
        if number != self._number or held.get("token") != self._me["token"]:
            raise self._in_use(held)

    def release(self) -> None:
        """Leave in order; what the store makes of it does not matter any more."""
        if self._thread is None:
            return
        self._end.set()
        self._thread.join()
        self._thread = None
        with suppress(StoreError, InUseError):
            self.check()
            self._bucket.write(_object(self._number), self._sign(left=True))

    @property
    def _name(self) -> str:
        return printable(self._bucket.url)

    def _beat(self) -> None:
        while not self._end.wait(self._refresh):
            with suppress(StoreError):  # it may come back before patience ends
                self._bucket.write(_object(self._number), self._sign())

    def _sign(self, **more: Any) -> bytes:
        self._beats += 1
        return json.dumps({**self._me, "beat": self._beats, **more}).encode()

    def _newest(self) -> tuple[int, dict[str, Any]]:
        """The greatest number, and who holds it; 0 if there is none."""
        number = max(map(_number, self._bucket.list(LOCKS)), default=0)
        content = self._bucket.read(_object(number)) if number else None
        return number, parsed(content or b"")

    def _outwait(self, number: int, held: dict[str, Any]) -> dict[str, Any]:
        """Wait until a holder has left or must be dead; return its last sign."""
        self._say(
            f"note: {self._name} is held by {named(held)}; waiting up to "
            f"{self._patience:.0f} s for a sign of life"
        )
        end = time.monotonic() + self._patience
        while time.monotonic() < end:
            time.sleep(min(self._refresh, self._patience) / 4)
            now = self._newest()
            if now[0] == number and "left" in now[1]:
                return now[1]
            if now != (number, held):
                raise self._in_use(now[1])
        return held

    def _in_use(self, held: dict[str, Any]) -> InUseError:
        return InUseError(
            f"the run folder {self._name} is in use by {named(held)}: wait until it "
            "ends, stop it, or take another --workdir"
        )


def _object(number: int) -> str:
    return f"{LOCKS}/{number}"


def _number(name: str) -> int:
    number = name.removeprefix(f"{LOCKS}/")
    return int(number) if number.isdecimal() and len(number) < 16 else 0


def _where(folder: Path) -> str:
    """A local folder's lock, told apart from those of other hosts and containers."""
    boot, there = Path("/proc/sys/kernel/random/boot_id"), os.stat(folder / LOCK)
    host = boot.read_text().strip() if boot.exists() else uuid.uuid4().hex
    return f"{host}:{there.st_dev}:{there.st_ino}"
