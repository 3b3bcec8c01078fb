# SPDX-License-Identifier: Apache-2.0
"""What all parts of the check share: its sizes, its clock, and the file of its rows."""

import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common
from fmfa_jax import files

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        model: Preset of the towers.
        large: Preset and picture size of the largest model that has to compile.
        layers: Blocks of each tower; None: all.
        batch: Pairs in a batch where only one size is measured.
        batches: Sizes that the whole step is measured at.
        peer_batches: Sizes that the peer is measured at.
        steps: Steps between two looks at the clock.
        side: Of the square matrices whose product is a ceiling.
        copied: Bytes of the copy that is another.
        tokens: Pairs in the batch that attention is measured on.
        rows: Of the weak method's memory.
        pictures: Pictures that are decoded.
    """

    model: str
    large: tuple[str, tuple[int, int]]
    layers: int | None
    batch: int
    batches: tuple[int, ...]
    peer_batches: tuple[int, ...]
    steps: int
    side: int
    copied: int
    tokens: int
    rows: tuple[int, ...]
    pictures: int


ON_A_CARD = Sizes(
    model="vit-b-16",
    large=("vit-l-14", (336, 336)),
    layers=None,
    batch=128,
    batches=(128, 64, 256),
    peer_batches=(128, 64),
    steps=10,
    side=8192,
    copied=1 << 30,
    tokens=128,
    rows=(68_000, 1_000_000),
    pictures=1024,
)
ON_A_CPU = Sizes(
    model="demo",
    large=("demo", (72, 40)),
    layers=1,
    batch=4,
    batches=(4,),
    peer_batches=(4,),
    steps=1,
    side=256,
    copied=1 << 20,
    tokens=1,
    rows=(4000,),
    pictures=8,
)


@dataclass(frozen=True)
class Run:
    """One part of a check.

    Attributes:
        part: Its name.
        file: JSON lines, appended to row by row.
        folder: Scratch folder of all parts.
        cpu: Everything is small, and on the CPU.
        until: Time of the clock at which the check's minutes are over.
    """

    part: str
    file: Path
    folder: Path
    cpu: bool
    until: float

    @property
    def sizes(self) -> Sizes:
        """How large everything is."""
        return ON_A_CPU if self.cpu else ON_A_CARD

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.until - time.time()

    def attempt(self, case: str, call: Callable[[], Any]) -> Any:
        """Return what `call` returns; None and a row that says why if it fails."""
        if self.left <= 0:
            self.append({"case": case, "error": "left out: the minutes were over"})
            return None
        try:
            return call()
        except Exception as error:
            traceback.print_exc()
            text = f"{type(error).__name__}: {str(error)[:400]}"
            self.append({"case": case, "error": text})
            return None

    def measure(self, case: str, call: Callable[[], Mapping[str, Any]]) -> None:
        """Append a row of what `call` returns, or of why there is none."""
        if (values := self.attempt(case, call)) is not None:
            self.append({"case": case} | dict(values))

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row; what was measured so far survives whatever comes."""
        line = files.valid_json({"part": self.part} | dict(row))
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")

    def rows(self, part: str) -> list[Row]:
        """Return the rows of a part so far."""
        lines = self.file.read_text(encoding="utf-8").splitlines()
        return [row for row in map(json.loads, lines) if row["part"] == part]

    def child(
        self, module: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Run a module in a process of its own, until the minutes are over."""
        limit = max(1.0, self.left)
        return common.child(module, *arguments, environment=environment, limit=limit)
