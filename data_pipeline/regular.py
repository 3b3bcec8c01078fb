# SPDX-License-Identifier: Apache-2.0
"""Reading files that users name: regular ones only, of a bounded size."""

import os
import stat

from data_pipeline.hints import printable

LARGEST = 1 << 30
"""Larger files are refused: no picture and no annotation has a gigabyte."""


def read_regular(path: str | os.PathLike[str], *, largest: int = LARGEST) -> bytes:
    """Return the bytes of a regular file; links are followed.

    Args:
        path: The file.
        largest: Largest number of bytes to read.

    Raises:
        OSError: If it cannot be read, is larger, or is no regular file: a pipe or a
            device could block for ever, or never end.
    """
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{printable(os.fspath(path))}: wanted a regular file")
        encoded = file.read(largest + 1)
    if len(encoded) > largest:
        raise OSError(
            f"{printable(os.fspath(path))}: wanted at most {largest} bytes, got more"
        )
    return encoded
