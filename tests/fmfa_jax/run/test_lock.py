# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a folder: who is refused, who takes over, what is said."""

import errno
import json
import os
import platform
import subprocess
import sys

import pytest

from fmfa_jax.run import lock
from fmfa_jax.run.lock import FolderLock, InUseError, check_name

HOLDER = """
import fcntl, json, os, sys, time
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(handle, fcntl.LOCK_EX)
who = {"host": "\\x1bhost", "pid": os.getpid(), "since": "2026-01-02T03:04:05+00:00"}
os.write(handle, json.dumps(who).encode())
print(flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of a run folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / lock.LOCK)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path, holder):
    with pytest.raises(InUseError) as error:
        FolderLock(tmp_path).__enter__()
    who = f"process {holder.pid} on \\x1bhost since 2026-01-02T03:04:05+00:00"
    assert f"{tmp_path} is in use by {who}: wait" in str(error.value)
    assert "another --workdir" in str(error.value)


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, holder):
    holder.kill()
    holder.wait()
    said = []
    with FolderLock(tmp_path, said.append):
        assert json.loads((tmp_path / lock.LOCK).read_text())["pid"] == os.getpid()
    assert len(said) == 1 and f"process {holder.pid} on" in said[0]
    assert "do not reach across hosts" in said[0]  # it called itself another host
    with FolderLock(tmp_path, said.append):
        assert len(said) == 1  # nothing to say of one that left in order


def test_a_holder_on_this_host_that_was_killed_is_no_reason_to_look(tmp_path):
    who = {"host": platform.node(), "pid": 1, "since": "then"}
    (tmp_path / lock.LOCK).write_text(json.dumps(who))
    said = []
    with FolderLock(tmp_path, said.append):
        pass
    assert "its place is taken" in said[0] and "hosts" not in said[0]


@pytest.mark.parametrize("content", [b"\xff", b"[" * 99999, b"[]", b"9" * 5000, b""])
def test_what_the_file_says_is_not_needed(tmp_path, content):
    (tmp_path / lock.LOCK).write_bytes(content)
    with FolderLock(tmp_path):
        with pytest.raises(InUseError, match=f"process {os.getpid()} on"):
            FolderLock(tmp_path).take()


def test_a_folder_that_is_not_there_is_made_when_the_lock_is_taken(tmp_path):
    run = tmp_path / "a" / "run"
    with FolderLock(run) as held:
        assert not run.parent.exists()
        held.take()
        held.take()
        with pytest.raises(InUseError):
            FolderLock(run).__enter__()
    FolderLock(run).take()


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    said = []
    with FolderLock(tmp_path, said.append):
        assert len(said) == 1 and "cannot lock (No locks available)" in said[0]


@pytest.mark.parametrize("name", ["a\\b", "[x]", "a*", "b?", os.fsdecode(b"\xff")])
def test_a_name_that_no_checkpoint_could_be_read_from_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"without any of .*, got"):
        check_name(tmp_path / name / "run")
    check_name(tmp_path / "run")
