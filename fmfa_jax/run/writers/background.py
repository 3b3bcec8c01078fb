# SPDX-License-Identifier: Apache-2.0
"""A writer that may be slow, absent or broken, and holds up no training."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

CLOSE_SECONDS = 60.0
"""How long the end of a run waits for what is still on its way."""

ARTEFACTS = ("*.json", "curves.png", "bad_images*.tsv", "eval/**/*")
"""Files of a run that a tracker gets at its end; weights and logs stay."""


class Tracker(Protocol):
    """What is run in the background; each call may raise anything."""

    def scalars(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Write one entry."""

    def close(self) -> None:
        """Write the run's files, and end."""


class Background:
    """Runs a tracker in a thread of its own; what goes wrong with it is said once."""

    def __init__(
        self, name: str, opened: Callable[[], Tracker], say: Callable[[str], None]
    ) -> None:
        """Begin to open the tracker.

        Args:
            name: Of the tracker, for people.
            opened: Opens it, in the thread.
            say: Told, between entries, that nothing is tracked any more, and why.
        """
        self._name, self._say, self._trouble, self._told = name, say, "", False
        self._entries: SimpleQueue[tuple[int, float, dict[str, Any]] | None]
        self._entries = SimpleQueue()
        # A daemon: one that hangs must not keep the process from its end.
        self._thread = threading.Thread(target=self._run, args=(opened,), daemon=True)
        self._thread.start()

    def scalars(
        self, step: int, epoch: int | float, values: Mapping[str, float]
    ) -> None:
        """Hand over one entry."""
        if not self._trouble:
            self._entries.put((step, epoch, dict(values)))
        self._tell()

    def close(self) -> None:
        """Wait for what is on its way, for `CLOSE_SECONDS`."""
        self._entries.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._trouble = f"it did not end within {CLOSE_SECONDS:.0f} s"
        self._tell()

    def _run(self, opened: Callable[[], Tracker]) -> None:
        try:
            tracker = opened()
            while (entry := self._entries.get()) is not None:
                tracker.scalars(*entry)
            tracker.close()
        except ModuleNotFoundError as error:
            self._trouble = f"{error}: pip install {error.name}"
        except (Exception, SystemExit) as error:
            line = str(error).strip().split("\n")[0]
            self._trouble = f"{type(error).__name__}: {line[:500]}"

    def _tell(self) -> None:
        if self._trouble and not self._told:
            self._told = True
            self._say(
                f"warning: {self._name}: {self._trouble}; the run goes on without it, "
                "and metrics.jsonl has the same numbers"
            )


def artefacts(folder: Path) -> list[Path]:
    """What of a run's folder a tracker gets; see `ARTEFACTS`."""
    found = {path for pattern in ARTEFACTS for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file())
