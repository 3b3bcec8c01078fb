# SPDX-License-Identifier: Apache-2.0
"""Reading files that users name: regular ones only, of a bounded size."""

import json
import os
import stat
from typing import Any

from data_pipeline.hints import printable

LARGEST = 1 << 30
"""Larger files are refused: no picture and no annotation has a gigabyte."""

LARGEST_JSON = 2 << 20
"""The same of configs, tables and records; Python needs 25 times as much for it."""


def read_regular(path: str | os.PathLike[str], *, largest: int = LARGEST) -> bytes:
    """Return the bytes of a regular file; links are followed.

    Args:
        path: The file.
        largest: Largest number of bytes to read.

    Raises:
        OSError: If it cannot be read, is larger, or is no regular file: a pipe or a
            device could block for ever, or never end.
    """
    name = printable(os.fspath(path))
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{name}: a pipe, device or folder, no regular file")
        with open(descriptor, "rb", closefd=False) as file:
            encoded = file.read(largest + 1)
    finally:
        os.close(descriptor)
    if len(encoded) > largest:
        raise OSError(f"{name}: wanted at most {largest} bytes, got more")
    return encoded


def read_json(path: str | os.PathLike[str], *, largest: int = LARGEST_JSON) -> Any:
    """Return what a JSON file in UTF-8 holds.

    Args:
        path: The file.
        largest: Largest number of bytes to read.

    Raises:
        OSError: See `read_regular`.
        ValueError: It is no JSON, or holds what Python does not read: values nested too
            deep, numbers of thousands of digits.
    """
    encoded = read_regular(path, largest=largest)
    try:
        return json.loads(encoded.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("its values are nested too deep") from error
