# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl: one line {"step", "epoch", name: value} for each entry of the log."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

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
            say: Told about dropped lines.
        """
        path = folder / METRICS
        _drop_lines_after(start_step, path, say)
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a", encoding="utf-8")

    def scalars(
        self, step: int, epoch: int | float, values: Mapping[str, float]
    ) -> None:
        """Append one line; what is not finite becomes null."""
        line = files.valid_json({"step": step, "epoch": epoch, **values})
        self._stream.write(json.dumps(line, allow_nan=False) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _drop_lines_after(step: int, path: Path, say: Callable[[str], None]) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        files.write_text(path, "".join(line + "\n" for line in kept))
        say(
            f"{METRICS}: dropped {len(lines) - len(kept)} lines after step {step}, "
            "which are computed again"
        )


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # torn by a kill
