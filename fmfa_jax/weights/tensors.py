# SPDX-License-Identifier: Apache-2.0
"""A tensor still in its file: validated first, memory-mapped when read."""

import reprlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from data_pipeline.hints import printable

# Dtypes that weights are stored in; all are converted to float32.
FLOAT_TYPES = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)


# A command that takes what the caller's own may not.
IMPORT = "python -m fmfa_jax.weights import FILE OUT"
# Names in one error, and letters of all of it; the first ones tell what is wrong.
MAX_LISTED, MAX_MESSAGE = 20, 4000
# More than any CLIP has with all its optimizer's, and than any tensor has.
MAX_TENSORS, MAX_AXES = 20_000, 16
# Of all names together, which are searched for dozens of patterns.
MAX_LETTERS = 2**20
# Values from files are shown in bounded time, however large or deeply nested.
_VALUES = reprlib.Repr()
_VALUES.maxlist = _VALUES.maxtuple = MAX_AXES


class WeightsError(ValueError):
    """A weight file that cannot be used as it is; the message says what to do."""

    def __init__(self, message: str) -> None:
        """Keep the message, safe to print, with its middle left out if it is long."""
        text = "\n".join(map(printable, message.split("\n")))
        if len(text) > MAX_MESSAGE:
            half = MAX_MESSAGE // 2 - 2
            text = f"{text[:half]}...{text[-half:]}"
        super().__init__(text)


class UnsafePickleError(WeightsError):
    """A pickle that asks for what is neither a tensor nor data."""


def shown(name: Any, most: int = 200) -> str:
    """Return a name or value from a file for people: short, and safe to print."""
    nested = isinstance(name, dict | list | tuple)
    text = _VALUES.repr(name) if nested else str(name)
    return printable(text if len(text) <= most else f"{text[:most]}...")


def check_names(names: Collection[str]) -> None:
    """Refuse more names than any CLIP has, before they are looked at closely."""
    letters = sum(map(len, names))
    if len(names) > MAX_TENSORS or letters > MAX_LETTERS:
        raise WeightsError(
            f"{len(names)} tensors with names of {letters} letters together; the "
            f"limits are {MAX_TENSORS} and {MAX_LETTERS}"
        )


def listed(rows: Sequence[str]) -> str:
    """Return at most `MAX_LISTED` rows, one a line, and how many more there are."""
    lines: list[str] = []
    room = MAX_MESSAGE - 1000
    while len(lines) < min(len(rows), MAX_LISTED) and room > 0:
        lines.append(f"  {shown(rows[len(lines)], 500)}")
        room -= len(lines[-1])
    if len(rows) > len(lines):
        lines.append(f"  and {len(rows) - len(lines)} more")
    return "\n".join(lines)


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is in a file.

    Attributes:
        path: The file.
        dtype: NumPy dtype of the elements (bfloat16 through ml_dtypes).
        shape: Size of each axis.
        strides: Distance between neighbours along each axis, in elements.
        offset: Position of the first element, in bytes from the start of the file.
    """

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements in a dense layout."""
        return self.size * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Map the tensor as a read-only view of the file, released with the array."""
        if self.size == 0:
            return np.empty(self.shape, self.dtype)
        mapped = np.memmap(
            self.path,
            dtype=self.dtype,
            mode="r",
            offset=self.offset,
            shape=(span(self.shape, self.strides),),
        )
        strides = tuple(stride * self.dtype.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(
            mapped, self.shape, strides, writeable=False
        )


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Count the elements from the first to the last of a strided view, inclusive."""
    if prod(shape) == 0:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


def overlaps(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether two indices of the view can refer to the same element."""
    reach = 1
    axes = sorted((step, n) for n, step in zip(shape, strides, strict=True) if n > 1)
    for step, n in axes:
        if step < reach:
            return True
        reach = (n - 1) * step + reach
    return False


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return row-major strides, in elements."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
