# SPDX-License-Identifier: Apache-2.0
"""The one way in which files are written: whole under their name, or not at all."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a draft beside `path` that takes its name when the block succeeds.

    The block makes a file or a folder of the draft. A reader sees the old content or
    the new one, also after a loss of power; when the block fails, `path` is as it was
    and the draft is gone. A folder cannot replace another: its name must be free.

    Args:
        path: its parent folders are made where missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.unfinished")
    _remove(draft)  # left by a process that was killed
    try:
        yield draft
        _sync(draft)
        os.replace(draft, path)
    except BaseException:
        _remove(draft)
        raise
    _sync_names(path.parent)


@contextmanager
def writing(path: str | Path) -> Iterator[TextIO]:
    """Open a UTF-8 text file to write; see `replacing`.

    Line ends are written as they come. A file name that is not valid UTF-8 is written
    with escapes.
    """
    with (
        replacing(path) as draft,
        draft.open(
            "w", encoding="utf-8", errors="backslashreplace", newline=""
        ) as stream,
    ):
        yield stream


def write_text(path: str | Path, text: str) -> None:
    """Write a text file; see `writing`."""
    with writing(path) as stream:
        stream.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Write valid JSON; see `valid_json` and `writing`."""
    write_text(path, json.dumps(valid_json(value), indent=2, allow_nan=False) + "\n")


def write_table(
    path: str | Path, header: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Write tab-separated values; tabs and line ends within a cell become spaces."""
    lines = ["\t".join(_cell(value) for value in row) for row in (header, *rows)]
    write_text(path, "\n".join(lines) + "\n")


def valid_json(value: Any) -> Any:
    """Return `value` in JSON's own types; NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(key): valid_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [valid_json(each) for each in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _cell(value: Any) -> str:
    return " ".join(str(value).split())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Bring a file, or a folder with all that it holds, onto the disk."""
    if not path.is_dir():
        _sync_names(path)
        return
    for each in path.iterdir():
        _sync(each)
    _sync_names(path)


def _sync_names(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def set_aside(path: str | Path, name: str | Path) -> Path:
    """Rename a file, link or folder so that nothing is lost; return its new path.

    Args:
        path: What is set aside.
        name: The new path; "-2", "-3", ... is added where it is taken.
    """
    target, number = Path(name), 1
    while os.path.lexists(target):
        number += 1
        target = Path(f"{name}-{number}")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(path, target)
    return target
