# SPDX-License-Identifier: Apache-2.0
"""A report on loading a weight file, for people and for run logs."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a file and every parameter of the model.

    Attributes:
        source: The weight file.
        sha256: Its digest.
        loaded: Our paths that the file filled.
        resized: Position embeddings that were interpolated, with both sizes.
        ignored: Unused entries of the file, each with the reason.
        newly_initialised: Our paths that the file does not fill (only heads).
    """

    source: str
    sha256: str
    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    ignored: tuple[str, ...]
    newly_initialised: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-serializable values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows = [f"weights  {self.source}", f"sha256   {self.sha256}"]
        rows.append(f"loaded   {len(self.loaded)} parameters")
        for label in ("resized", "ignored", "newly_initialised"):
            rows += [f"{label}: {entry}" for entry in getattr(self, label)]
        return "\n".join(rows)
