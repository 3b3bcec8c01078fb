# SPDX-License-Identifier: Apache-2.0
"""A report on loading a weight file, for people and for run logs."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fmfa_jax.weights.tensors import shown


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a file and every parameter of the model.

    Attributes:
        source: The weight file.
        sha256: Its digest.
        family: Whose names it has.
        activation: The activation of the towers, and what states it.
        notes: What was chosen in the file or taken off its names.
        loaded: Our paths that the file filled.
        resized: Position embeddings that were interpolated, with both sizes.
        ignored: Unused entries of the file, each with the reason.
        newly_initialised: Our paths that the file does not fill (only heads).
    """

    source: str
    sha256: str
    family: str
    activation: str
    notes: tuple[str, ...]
    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    ignored: tuple[str, ...]
    newly_initialised: tuple[str, ...]

    @property
    def assumes(self) -> bool:
        """Whether nothing states the activation."""
        return ", assumed " in self.activation

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-serializable values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows = [f"weights  {shown(self.source, 4096)}", f"sha256   {self.sha256}"]
        rows.append(f"family   {self.family}")
        rows.append(f"loaded   {len(self.loaded)} parameters")
        rows.append(f"activation: {self.activation}")
        for label in ("notes", "resized", "ignored", "newly_initialised"):
            word = "note" if label == "notes" else label
            rows += [f"{word}: {shown(entry)}" for entry in getattr(self, label)]
        return "\n".join(rows)
