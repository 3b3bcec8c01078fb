# SPDX-License-Identifier: Apache-2.0
"""The shipped demo config, shrunk to seconds: what the tests of whole runs share."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax

from configs import demo
from data_pipeline.records import UNKNOWN_PERSON, Split
from fmfa_jax.training import loop, session
from tests.compiling import quick

ROOT = Path(__file__).parents[1]
DEVICES = 2  # of the eight simulated ones, which on two cores only wait
IDENTITIES, IMAGES, VAL, TEST = 16, 2, 4, 8

ENVIRONMENT = quick(DEVICES) | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
CONFIG = """
from pathlib import Path
from tests.tiny_run import tiny_config

def get_config():
    return tiny_config(Path({folder!r}))
"""


def tiny_config(folder: Path, preset: str = "repaired", **changes):
    """`configs/demo.py:preset` on a tiny population in `folder`, 12 steps of 8 pairs.

    Args:
        folder: shared by the runs of a test session: the population and the compiled
            programs lie there.
        preset: of the demo.
        changes: dotted keys with __ for the dot, as train__stop_step=5.
    """
    c = demo.get_config(preset).copy_and_resolve_references()
    c.unlock()
    c.init.path = ""
    c.weak.threshold = 0.7  # of random towers, which are nearly collinear
    c.data.root = str(folder / "population")
    c.data.tokenizer = str(folder / "population" / "tokenizer")
    c.data.options.identities = IDENTITIES
    c.data.options.images_per_identity = IMAGES
    c.data.options.val_identities = VAL
    c.data.options.test_identities = TEST
    c.run.compilation_cache = str(folder / "compiled")
    # Two epochs of 64 pairs; the rate must move within them.
    c.train.batch_size = 8
    c.train.epochs = 2
    c.train.stop_step = 12
    c.schedule.warmup_epochs = 0.5
    c.eval.every_epochs = 1
    c.eval.batch_size = 16
    c.eval.pictures = 0
    c.log.every_steps = 1
    c.log.tensorboard = False
    c.checkpoint.every_steps = 5
    c.lock()
    with c.unlocked():
        for key, value in changes.items():
            c.update_from_flattened_dict({key.replace("__", "."): value})
    return c


def train(config, run: Path) -> None:
    """`loop.train` on two devices."""
    loop.train(config, str(run), devices=jax.devices()[:DEVICES])


def evaluate(config, run: Path) -> None:
    """`loop.evaluate` on two devices."""
    loop.evaluate(config, str(run), devices=jax.devices()[:DEVICES])


def change_data(monkeypatch, **changes) -> None:
    """Change what runs get for their data: split -> what is made of it."""
    opened = session.open_dataset

    def changed(*where, **options):
        data = opened(*where, **options)
        splits = {name: change(getattr(data, name)) for name, change in changes.items()}
        return replace(data, **splits)

    monkeypatch.setattr(session, "open_dataset", changed)


def without_ids(split: Split) -> Split:
    """The same pictures and captions, of nobody knows whom."""
    images = tuple(replace(picture, person=UNKNOWN_PERSON) for picture in split.images)
    return replace(split, images=images)


def started(folder: Path, run: Path, *, limit: str = "unlimited"):
    """`main.py` with the tiny config, as a user starts it from a shell.

    Args:
        folder: See `tiny_config`.
        run: Folder of the run.
        limit: To the size of files, in KiB, as a full disk would have one.
    """
    (folder / "config.py").write_text(CONFIG.format(folder=str(folder)))
    command = f"{sys.executable} main.py --config={folder}/config.py --workdir={run}"
    return subprocess.Popen(
        ["bash", "-c", f"ulimit -f {limit}; exec {command}"],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train_until_killed(
    folder: Path,
    run: Path | str,
    *,
    after: int,
    preset: str = "repaired",
    saved: Callable[[], bool] | None = None,
    **changes,
):
    """The tiny run in a process of its own, killed once checkpoint `after` is there.

    Args:
        folder: See `tiny_config`.
        run: Folder of the run, or its URL.
        after: Step of the checkpoint.
        preset: See `tiny_config`.
        saved: Whether the checkpoint is there; looks into a folder by default.
        **changes: See `tiny_config`.
    """
    script = (
        "import json, sys; from pathlib import Path\n"
        "from tests.tiny_run import tiny_config\n"
        "from fmfa_jax.training import loop\n"
        "folder, run, preset, changes = sys.argv[1:]\n"
        "config = tiny_config(Path(folder), preset, **json.loads(changes))\n"
        "loop.train(config, run)\n"
    )
    told = [str(folder), str(run), preset, json.dumps(changes)]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *told],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    saved = saved or (Path(run) / "checkpoints" / str(after)).exists
    deadline = time.monotonic() + 600
    while not saved() and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint within 600 s"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()[-2000:]
