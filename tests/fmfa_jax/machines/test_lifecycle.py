# SPDX-License-Identifier: Apache-2.0
"""Processes that find each other, agree, stop together and never hang."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from fmfa_jax.machines.lifecycle import STALLED_EXIT, StopSignal, Watchdog
from fmfa_jax.machines.processes import (
    Processes,
    agree,
    broadcast,
    gather,
    initialize_distributed,
    together,
)
from fmfa_jax.run import environment as environment_module
from fmfa_jax.run.checkpoints import Checkpoints
from fmfa_jax.run.environment import code_version, environment
from tests.compiling import quick

ROOT = Path(__file__).parents[3]
PEER = Path(__file__).with_name("lifecycle_peer.py")

STALLED = """
import sys, tempfile, time
import jax
from jax._src import compilation_cache
from fmfa_jax.machines.lifecycle import Watchdog

def wait_for_a_peer():
    time.sleep(60)

def compile_for_long(*unread):
    print("compiles", flush=True)
    time.sleep(3)
    return None, None

with Watchdog(1.5) as watchdog, tempfile.TemporaryDirectory() as folder:
    for step in range(40):  # longer than the limit: the beats keep it alive
        watchdog.beat(f"step {step}")
        time.sleep(0.05)
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.get_executable_and_time = compile_for_long
    jax.jit(lambda x: x + 1)(1.0)  # longer than the limit, too
    print("compiled", flush=True)
    wait_for_a_peer()
"""

IMPATIENT = """
import os, signal
from fmfa_jax.machines.lifecycle import StopSignal

with StopSignal() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    print("alive", stop.requested(1), stop.name, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still alive", flush=True)
"""


def start(*arguments, **variables):
    variables = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | variables
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """All subprocesses of this file, started at once: {name: (rc, out, err)}."""
    folder = tmp_path_factory.mktemp("peers")
    pair = quick(2) | {
        "COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "NUM_PROCESSES": "2",
    }
    running = {
        "stalled": start("-c", STALLED),
        "impatient": start("-c", IMPATIENT),
        "peer 0": start(str(PEER), str(folder), PROCESS_ID="0", **pair),
        "peer 1": start(str(PEER), str(folder), PROCESS_ID="1", **pair),
    }
    try:
        texts = {name: each.communicate(timeout=180) for name, each in running.items()}
    finally:
        for each in running.values():
            each.kill()
    done = {name: (running[name].returncode, *text) for name, text in texts.items()}
    return done | {"folder": folder}


@pytest.fixture(scope="module")
def peers(programs):
    """The reports of the two processes."""
    reports = []
    for name in ("peer 0", "peer 1"):
        code, out, err = programs[name]
        assert code == 0, err
        line = next(line for line in out.splitlines() if line.startswith("REPORT "))
        reports.append(json.loads(line.removeprefix("REPORT ")))
    return reports


def test_two_processes_find_each_other(peers):
    assert [peer["processes"] for peer in peers] == [
        [0, 2, "environment"],
        [1, 2, "environment"],
    ]


def test_every_process_sees_all_values(peers):
    everyone = [{"index": 0, "text": ""}, {"index": 1, "text": "ä"}]
    for peer in peers:
        assert peer["gathered"] == everyone
        assert peer["shared"] == everyone[0]
        assert peer["pieces"] == "ä" * 100


def test_processes_that_disagree_are_told_what_about(peers):
    for peer in peers:
        assert peer["agreed"] == ""
        lines = peer["disagreed"].splitlines()
        assert lines[1:3] == [
            "  config.seed: 0 on process 0; 1 on process 1",
            "  extra: absent on process 0; null on process 1",
        ]
        assert "batch" not in peer["disagreed"]


def test_what_fails_on_one_process_is_told_on_all(peers):
    failed = "opening the data failed on other processes:\n  process 1: OSError: "
    assert [peer["half"] for peer in peers] == [f"{failed}no such disk", "no such disk"]


def test_a_run_folder_that_is_not_shared_is_refused_on_all(peers, programs):
    for peer in peers:
        assert "process 1 does not see what process 0 writes into" in peer["own"]
        assert "all hosts share" in peer["own"]
    left = [path.name for path in programs["folder"].rglob(".seen-*")]
    assert left == []


def test_a_run_folder_in_use_is_refused_on_all(peers):
    assert all("is in use by process" in peer["locked"] for peer in peers)


def test_all_processes_stop_at_the_same_step(peers):
    steps = [peer["stop"][0] for peer in peers]
    assert steps[0] == steps[1] > 5
    assert [peer["stop"][1] for peer in peers] == ["SIGTERM", "SIGINT"]


def test_two_processes_save_verify_and_restore_together(peers, programs):
    assert [peer["checkpoints"]["step"] for peer in peers] == [1, 1]
    assert all(peer["checkpoints"]["same"] for peer in peers)
    said = [peer["checkpoints"]["said"] for peer in peers]
    assert len(said[0]) == 1 and "no manifest.json" in said[0][0] and not said[1]
    for peer in peers:
        assert "run: the checkpoint has 1, this run 2" in peer["checkpoints"]["refused"]


def test_one_process_restores_what_two_have_saved(peers, programs):
    folder = programs["folder"] / "checkpoints"
    checkpoints = Checkpoints(folder, identity={"run": 1})
    state, step = checkpoints.restore_latest({"x": jnp.zeros((8, 3))})
    expected = np.arange(24, dtype=np.float32).reshape(8, 3) * 2
    assert step == 2
    np.testing.assert_array_equal(state["x"], expected)


def test_only_process_0_writes(peers, programs):
    names = {path.name for path in (programs["folder"] / "run").iterdir()}
    assert names == {"0"}


def test_the_watchdog_ends_a_stuck_process_and_shows_where(programs):
    code, out, err = programs["stalled"]
    assert code == STALLED_EXIT
    assert out == "compiles\ncompiled\n"  # which is not counted, however long it takes
    assert "no progress for 1.5 s; the last was step 39" in err
    assert "wait_for_a_peer" in err


def test_a_second_signal_ends_at_once(programs):
    code, out, err = programs["impatient"]
    assert code == -signal.SIGTERM
    assert out.splitlines() == ["alive True SIGTERM"]
    assert "saving a checkpoint after this step" in err
    assert "leaving at once" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_marks_the_stop_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested(1)
        signal.raise_signal(number)
        assert stop.requested(2) and stop.name == number.name
    assert signal.getsignal(number) == before


def test_a_watchdog_of_zero_seconds_is_off():
    with Watchdog(0) as watchdog:
        watchdog.beat("step 1")
        assert "watchdog" not in {thread.name for thread in threading.enumerate()}


def test_one_process_agrees_with_itself():
    agree({"config": {"sizes": (1, 2)}})
    assert gather({"a": (1, 2)}) == [{"a": [1, 2]}]
    assert broadcast("x") == "x"
    with pytest.raises(OSError, match="gone"), together("reading"):
        raise OSError("gone")


def test_alone_nothing_is_initialized(monkeypatch):
    for name in [name for name in os.environ if re.match("SLURM|OMPI|TPU", name)]:
        monkeypatch.delenv(name)
    assert initialize_distributed() == Processes(0, 1, "none")


def test_the_environment_says_what_ran_where():
    found = json.loads(json.dumps(environment(), allow_nan=False))
    assert found["command"] == [sys.executable, *sys.orig_argv[1:]]
    assert found["packages"]["jax"] and found["devices"]["count"] == 8
    assert found["code"]["version"] == code_version()


def test_without_git_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(environment_module, "ROOT", tmp_path)
    assert environment()["code"]["commit"] is None


def test_where_it_is_installed_the_commit_is_what_pip_noted(monkeypatch, tmp_path):
    """Not that of a repository around it, in which it is no file."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    site = tmp_path / "site-packages"
    noted = site / "fmfa_jax-1.dist-info" / "direct_url.json"
    noted.parent.mkdir(parents=True)
    (noted.parent / "METADATA").write_text("Name: fmfa-jax\nVersion: 1\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(environment_module, "ROOT", site)
    assert environment()["code"]["commit"] is None
    noted.write_text('{"url": "x", "vcs_info": {"vcs": "git", "commit_id": "abc"}}')
    assert environment()["code"]["commit"] == "abc"
    monkeypatch.setattr(environment_module, "ROOT", tmp_path)
    assert environment()["code"]["commit"] is None


def test_the_code_version_follows_the_sources_only(tmp_path):
    source = tmp_path / "fmfa_jax" / "a.py"
    source.parent.mkdir()
    source.write_text("x = 1\n")
    first = code_version(tmp_path)
    (tmp_path / "README.md").write_text("text")
    assert code_version(tmp_path) == first
    source.write_text("x = 2\n")
    assert code_version(tmp_path) != first
