# SPDX-License-Identifier: Apache-2.0
"""What was read from a weight file, and what was not: for people and for run logs."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a file and of every parameter of the model.

    Attributes:
        source: the weight file.
        sha256: its fingerprint.
        loaded: our paths that the file filled.
        resized: position embeddings that were interpolated, with both sizes.
        ignored: entries of the file that were not used, each with the reason.
        newly_initialised: our paths that the file does not fill (heads only).
    """

    source: str
    sha256: str
    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    ignored: tuple[str, ...]
    newly_initialised: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows = [f"weights  {self.source}", f"sha256   {self.sha256}"]
        rows.append(f"loaded   {len(self.loaded)} parameters")
        for label in ("resized", "ignored", "newly_initialised"):
            rows += [f"{label}: {entry}" for entry in getattr(self, label)]
        return "\n".join(rows)
