# SPDX-License-Identifier: Apache-2.0
"""One of two real processes; run by test_lifecycle, reports as JSON on one line.

Usage: lifecycle_peer.py FOLDER, with COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fmfa_jax.machines import processes
from fmfa_jax.machines.lifecycle import StopSignal
from fmfa_jax.machines.processes import (
    agree,
    broadcast,
    check_shared,
    gather,
    initialize_distributed,
    together,
)
from fmfa_jax.run.belonging import CheckpointMismatchError
from fmfa_jax.run.checkpoints import Checkpoints
from fmfa_jax.run.lock import FolderLock, InUseError
from fmfa_jax.run.log import open_log

ROWS = 8


def message(call, kind):
    """Return the text of the error that `call` raises, "" for none."""
    try:
        call()
    except kind as error:
        return str(error)
    return ""


def sharded(rows):
    """`rows` over all devices of both processes."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.make_array_from_callback(rows.shape, sharding, lambda i: rows[i])


def stop_step(index):
    """Take steps until told to stop; only process 1 gets the signal."""
    with StopSignal() as stop:
        for step in range(1000):
            if stop.requested(step):
                return step, stop.name
            if index == 1 and step == 5:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.02 + 0.02 * index)
    raise RuntimeError("no process was told to stop")


def saved_and_restored(folder):
    """Save from both processes, damage the newest, restore: the step that counts."""
    rows = np.arange(ROWS * 3, dtype=np.float32).reshape(ROWS, 3)
    with Checkpoints(folder, identity={"run": 1}, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": sharded(rows * step)})
    if jax.process_index() == 0:
        (folder / "2" / "manifest.json").unlink()
    broadcast(None)
    template = {"x": sharded(np.zeros_like(rows))}
    said = []
    checkpoints = Checkpoints(folder, identity={"run": 1}, say=said.append)
    with checkpoints:
        state, step = checkpoints.restore_latest(template)
        checkpoints.save(2, {"x": sharded(rows * 2)})
    local = [
        bool((np.asarray(each.data) == rows[each.index]).all())
        for each in state["x"].addressable_shards
    ]
    other = Checkpoints(folder, identity={"run": 2})
    refused = message(lambda: other.restore_latest(template), CheckpointMismatchError)
    return {"step": step, "same": all(local), "said": said, "refused": refused}


def locked(folder):
    """What both processes are told of a folder that process 0 holds already."""
    with FolderLock(folder) as lock:
        lock.take()
        return message(FolderLock(folder).take, (InUseError, RuntimeError))


def half(index):
    """What fails on process 1 alone."""
    with together("opening the data"):
        if index == 1:
            raise OSError("no such disk")


def main():
    """Do everything that needs two processes, once."""
    folder = Path(sys.argv[1])
    me = initialize_distributed()
    mine = {"index": me.index, "text": "ä" * me.index}
    common = {"config": {"seed": 1, "batch": 64}, "code": "abc"}
    other = common | {"config": {"seed": me.index, "batch": 64}}
    if me.index == 1:
        other["extra"] = None
    run = folder / "run" / str(me.index)
    with open_log(run, start_step=0, stop_step=1, pairs_per_step=1, tensorboard=False):
        pass
    check_shared(folder / "run")
    own = folder / f"own-{me.index}"
    processes._PIECE = 64
    pieces = broadcast("ä" * 100 * (1 - me.index))
    report = {
        "pieces": pieces,
        "processes": [me.index, me.count, me.launcher],
        "gathered": gather(mine),
        "shared": broadcast(mine),
        "agreed": message(lambda: agree(common), ValueError),
        "disagreed": message(lambda: agree(other), ValueError),
        "half": message(lambda: half(me.index), (OSError, RuntimeError)),
        "own": message(lambda: check_shared(own), ValueError),
        "locked": locked(folder / "locked"),
        "checkpoints": saved_and_restored(folder / "checkpoints"),
        "stop": stop_step(me.index),
    }
    print("REPORT " + json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
