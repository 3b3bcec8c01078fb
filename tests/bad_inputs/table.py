# SPDX-License-Identifier: Apache-2.0
"""What a table of bad inputs is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reader:
    """A reader, and what it is given.

    Attributes:
        name: What it reads.
        read: Puts the input into an empty folder and reads it.
        errors: What it declares to raise.
        rows: Pairs of an input and a part of the message that names what is wrong.
    """

    name: str
    read: Callable[[Path, Any], object]
    errors: type[Exception] | tuple[type[Exception], ...]
    rows: Sequence[tuple[Any, str]]
