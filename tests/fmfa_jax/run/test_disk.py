# SPDX-License-Identifier: Apache-2.0
"""A disk that refuses: recognised under any error, told in one line."""

import errno
import os
from pathlib import Path

import pytest

from data_pipeline.buckets import StoreError
from fmfa_jax.run.disk import DiskError, SaveError, refusal, watched

STORE = StoreError("s3://b/run: could not write it: PermissionError: no")
FULL = "RESOURCE_EXHAUSTED: Error writing 'x' [OS error 28: No space left on device]"


def nested(error, *outer):
    """An error that others were made of."""
    for each in outer:
        each.__cause__ = error
        error = each
    return error


FOLDER = Path("/mnt/run")
REFUSED = {
    "in words": (ValueError(FULL), errno.ENOSPC),
    "deep": (nested(OSError(errno.EDQUOT, "x"), ValueError("y"), KeyError("z")), 122),
    "ours": (FileNotFoundError(errno.ENOENT, "gone", "/mnt/run/metrics.jsonl"), 2),
    "ours in words": (ValueError("'/mnt/run/a': Permission denied"), errno.EACCES),
    "read-only": (OSError(errno.EROFS, "x", "/mnt/run/a"), errno.EROFS),
}
NOT_REFUSED = {
    "another file": FileNotFoundError(errno.ENOENT, "gone", "/data/1.jpg"),
    "another disk": OSError(errno.ENOSPC, "full", "/cache/pixels"),
    "a neighbour": FileNotFoundError(errno.ENOENT, "gone", "/mnt/run2/1.jpg"),
    "a neighbour in words": ValueError("/mnt/run2/a: No such file or directory"),
    "below one of its name in words": ValueError("/data/mnt/run/a: Permission denied"),
    "below one of its name": PermissionError(errno.EACCES, "no", "/data/mnt/run/1.jpg"),
    "no disk": ValueError("a bad value in /mnt/run"),
    "unknown": OSError("the disk is gone"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_found(name):
    error, number = REFUSED[name]
    assert refusal(error, FOLDER) == number


@pytest.mark.parametrize("name", NOT_REFUSED)
def test_other_errors_are_none(name):
    error = NOT_REFUSED[name]
    assert refusal(error, FOLDER) is None
    with pytest.raises(type(error)) as caught, watched(FOLDER):
        raise error
    assert caught.value is error


def test_what_is_told_is_one_line(tmp_path):
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    with pytest.raises(DiskError) as error, watched(tmp_path / "gone"):
        raise FileNotFoundError(errno.ENOENT, "was\nremoved", str(tmp_path / "gone"))
    text = str(error.value)
    assert "\n" not in text and str(tmp_path / "gone") in text
    assert "MiB free" in text and "No checkpoint is left; put the folder back" in text
    with pytest.raises(DiskError, match="No checkpoint is left; make room"):
        with watched(tmp_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("error", [STORE, nested(STORE, ValueError("x"), SaveError())])
def test_a_store_that_refuses_is_told_of(error, tmp_path):
    with pytest.raises(DiskError) as told, watched(tmp_path):
        raise error
    line = str(told.value)
    assert f"cannot be written: {STORE}. No checkpoint is left; start" in line
    assert str(tmp_path) not in line
