# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl: one line {"step", "epoch", name: value} for each entry of the log."""

import json
import os
from collections.abc import Callable, Mapping
from errno import ENOENT
from pathlib import Path
from typing import Any

from fmfa_jax import files

METRICS = "metrics.jsonl"


class JsonLines:
    """Appends to metrics.jsonl in a run's folder."""

    def __init__(
        self, folder: Path, *, start_step: int, say: Callable[[str], None]
    ) -> None:
        """Open the file; lines after `start_step` are dropped.

        Args:
            folder: Folder of the run.
            start_step: Steps done before now; later ones are computed again.
            say: Told about dropped lines, and about a file that had to be set aside.
        """
        self._path = folder / METRICS
        _drop_lines_after(start_step, self._path, say)
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = self._path.open("a", encoding="utf-8")

    def scalars(
        self, step: int, epoch: int | float, values: Mapping[str, float]
    ) -> None:
        """Append one line; what is not finite becomes null.

        Raises:
            FileNotFoundError: The file was removed, and no line would be seen.
        """
        line = files.valid_json({"step": step, "epoch": epoch, **values})
        if not os.fstat(self._stream.fileno()).st_nlink:
            raise FileNotFoundError(ENOENT, "was removed", str(self._path))
        self._stream.write(json.dumps(line, allow_nan=False) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def entry(line: bytes) -> dict[str, Any]:
    """Return what a line holds; empty if that is no entry, a mapping with a step."""
    try:
        found = json.loads(line.decode("utf-8"))
        step = found["step"]
        # False for NaN, infinities and what no counter reaches.
        return found if type(step) in (int, float) and abs(step) < 2**53 else {}
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}


def recorded(folder: Path, name: str, *, step: int) -> bool:
    """Whether metrics.jsonl of a run has a value of that name at a step."""
    path = folder / METRICS
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    found = [each for each in map(entry, lines) if each.get("step") == step]
    return any(name in each for each in found)


def _drop_lines_after(step: int, path: Path, say: Callable[[str], None]) -> None:
    if not os.path.lexists(path):
        return
    lines = path.read_bytes().split(b"\n") if path.is_file() else [b"none", b""]
    torn = lines.pop()  # by a kill, unless it is empty
    entries = [line for line in lines if entry(line)]
    kept = [line for line in entries if entry(line)["step"] <= step]
    broken = [line for line in lines if line.strip() and not entry(line)]
    if broken:
        aside = files.set_aside(path, path.with_name(f"{METRICS}.damaged"))
        say(
            f"{METRICS}: {len(broken)} lines cannot be read; those that can go on in a "
            f"new file, the old one is {aside.name}"
        )
    if broken or torn or len(kept) < len(lines):
        files.write_text(path, "".join(f"{line.decode()}\n" for line in kept))
    if dropped := len(entries) - len(kept) + bool(torn):
        say(
            f"{METRICS}: dropped {dropped} lines after step {step}, which are computed "
            "again"
        )
