# SPDX-License-Identifier: Apache-2.0
"""What there is to say about a data set besides its counts."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from data_pipeline.hints import printable

SHOWN = 3
"""Number of examples that the text of a finding names."""


@dataclass(frozen=True)
class Finding:
    """One kind of oddity, with its count.

    Attributes:
        kind: Short name for scripts, such as "leak".
        gravity: "error" if training or evaluation fails or means nothing; "warning" for
            what is probably not intended; "note" for what was put in order.
        count: How many pictures, captions or people it concerns.
        text: One sentence, count included.
    """

    kind: str
    gravity: Literal["error", "warning", "note"]
    count: int
    text: str

    def __str__(self) -> str:
        return f"{self.gravity}: {self.text}"


def examples(names: Iterable[str], *, of: int) -> str:
    """Return the first few of `of` names, in quotes and safe to print."""
    shown = [f"'{shortened(name)}'" for name in islice(names, SHOWN)]
    more = ", ..." if of > len(shown) else ""
    return ", ".join(shown) + more


def shortened(text: str, length: int = 60) -> str:
    """Return the beginning of a text from a file, safe to print."""
    text = printable(text[: length + 1])
    return text if len(text) <= length else text[: length - 3] + "..."
