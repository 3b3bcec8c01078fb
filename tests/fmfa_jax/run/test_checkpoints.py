# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: exact, on any number of devices, and never believed when damaged."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fmfa_jax.run import manifests
from fmfa_jax.run.checkpoints import CheckpointMismatchError, Checkpoints
from fmfa_jax.run.manifests import CorruptCheckpointError

ROOT = Path(__file__).parents[3]
IDENTITY = {"model": {"width": 8, "image_size": (64, 32)}, "method": "fmfa"}


def make_state(step, *, devices=8):
    """A state as training has it: sharded, bf16 beside float32, named tuples."""
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    replicated = NamedSharding(mesh, PartitionSpec())
    key = jax.random.key(step)
    params = {
        "tower": {"kernel": jax.random.normal(key, (16, 4))},
        "bias": jnp.full((3,), step, jnp.bfloat16),
    }
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-3))
    state = {
        "params": params,
        "opt_state": optimizer.init(params),
        "step": jnp.int32(step),
    }
    return jax.tree.map(
        lambda x: jax.device_put(x, sharded if x.shape == (16, 4) else replicated),
        state,
    )


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with sound checkpoints of steps 3 and 5; copy it to damage it."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(folder, identity=IDENTITY, keep=2) as checkpoints:
        for step in (1, 3, 5):
            assert checkpoints.save(step, make_state(step))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def open_again(folder, **changes):
    said = []
    arguments = {"identity": IDENTITY, "keep": 2, "say": said.append} | changes
    return Checkpoints(folder, **arguments), said


@pytest.mark.parametrize("devices", [8, 2, 1])
def test_restores_exactly_onto_any_number_of_devices(saved, devices):
    template = make_state(0, devices=devices)
    checkpoints, said = open_again(saved)
    state, step = checkpoints.restore_latest(template)
    assert step == 5 and not said
    assert_same(state, make_state(5))
    for leaf, like in zip(
        jax.tree.leaves(state), jax.tree.leaves(template), strict=True
    ):
        assert leaf.sharding == like.sharding


def test_keeps_the_newest(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["3", "5"]


def test_an_empty_folder_restores_nothing_and_is_not_touched(tmp_path):
    checkpoints, said = open_again(tmp_path / "none")
    assert checkpoints.restore_latest(make_state(0)) is None
    assert not said and not (tmp_path / "none").exists()


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    double = jax.jit(lambda x: jax.tree.map(lambda y: y * 2, x), donate_argnums=0)
    state = {"big": jnp.arange(200_000, dtype=jnp.float32)}
    with Checkpoints(tmp_path, identity=IDENTITY) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(3):
            state = double(state)
        restored, _ = checkpoints.restore_latest(state)
    np.testing.assert_array_equal(restored["big"], np.arange(200_000, dtype=np.float32))


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def test_a_flipped_bit_in_any_file_is_seen(folder):
    step = folder / "5"
    names = [*json.loads((step / "manifest.json").read_text())["body"]["files"]]
    assert any(name.startswith("state/d/") for name in names)
    assert "state/_METADATA" in names
    for name in [*names, "manifest.json"]:
        sound = (step / name).read_bytes()
        flip_a_bit(step / name)
        with pytest.raises(CorruptCheckpointError):
            manifests.verify(step)
        (step / name).write_bytes(sound)
    assert manifests.verify(step).step == 5


def largest(step):
    files = [path for path in (step / "state").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def truncate(step):
    path = largest(step)
    path.write_bytes(path.read_bytes()[:-7])


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


DAMAGES = {
    "flipped bit": (lambda step: flip_a_bit(largest(step)), "content was changed"),
    "truncated": (truncate, "bytes, wanted"),
    "no metadata": (
        lambda step: (step / "state" / "_METADATA").unlink(),
        "_METADATA is missing",
    ),
    "no arrays": (lambda step: shutil.rmtree(step / "state"), "is missing"),
    "no manifest": (
        lambda step: (step / "manifest.json").unlink(),
        "no manifest.json",
    ),
    "empty folder": (empty, "no manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_corrupt_step_is_named_passed_over_and_saved_over(folder, damage):
    act, reason = DAMAGES[damage]
    act(folder / "5")
    checkpoints, said = open_again(folder)
    with checkpoints:
        state, step = checkpoints.restore_latest(make_state(0))
        assert step == 3
        assert_same(state, make_state(3))
        assert len(said) == 1
        assert str(folder / "5") in said[0] and reason in said[0]
        assert (folder / "5").exists()  # a reader changes nothing

        assert checkpoints.save(4, make_state(4))
        assert checkpoints.save(5, make_state(5))
    again, said = open_again(folder)
    assert again.restore_latest(make_state(0)).step == 5 and not said
    assert (folder / "corrupt" / "5").is_dir()


def test_nothing_sound_left_is_an_error_not_a_new_start(folder):
    flip_a_bit(largest(folder / "3"))
    empty(folder / "5")
    checkpoints, _ = open_again(folder)
    with pytest.raises(CorruptCheckpointError) as error:
        checkpoints.restore_latest(make_state(0))
    text = str(error.value)
    assert str(folder / "3") in text and str(folder / "5") in text
    assert "No checkpoint verifies" in text


def test_another_configuration_is_refused_with_the_differing_keys(saved):
    other = {"model": {"width": 9, "image_size": (64, 32)}, "data": {"name": "icfg"}}
    checkpoints, _ = open_again(saved, identity=other)
    with pytest.raises(CheckpointMismatchError) as error:
        checkpoints.restore_latest(make_state(0))
    lines = str(error.value).splitlines()
    assert "another configuration" in lines[0] and str(saved / "5") in lines[0]
    assert lines[1:4] == [
        '  data.name: the checkpoint has absent, this run "icfg"',
        '  method: the checkpoint has "fmfa", this run absent',
        "  model.width: the checkpoint has 8, this run 9",
    ]
    assert "image_size" not in str(error.value)


def test_other_arrays_are_refused_with_their_paths(saved):
    template = make_state(0)
    template["params"]["tower"]["kernel"] = jnp.zeros((16, 5))
    template["params"]["bias"] = template["params"]["bias"].astype(jnp.float32)
    template["params"]["head"] = jnp.zeros(2)
    del template["step"]
    checkpoints, _ = open_again(saved)
    with pytest.raises(CheckpointMismatchError) as error:
        checkpoints.restore_latest(template)
    assert str(error.value).splitlines()[1:] == [
        '  params/bias: the checkpoint has "bfloat16[3]", this run "float32[3]"',
        '  params/head: the checkpoint has absent, this run "float32[2]"',
        '  params/tower/kernel: the checkpoint has "float32[16,4]", '
        'this run "float32[16,5]"',
        '  step: the checkpoint has "int32[]", this run absent',
    ]


def poisoned(step):
    state = make_state(step)
    kernel = state["params"]["tower"]["kernel"]
    state["params"]["tower"]["kernel"] = kernel.at[9, 1].set(jnp.nan)
    return state


def test_what_is_not_finite_is_not_saved(folder):
    checkpoints, _ = open_again(folder)
    with checkpoints:
        checkpoints.restore_latest(make_state(0))
        with pytest.raises(FloatingPointError, match=r"step 6 .* params/tower/kernel$"):
            checkpoints.save(6, poisoned(6))
        assert checkpoints.saved() == folder / "5"
    assert sorted(path.name for path in folder.iterdir()) == ["3", "5"]


def test_what_was_saved_and_is_not_finite_counts_as_corrupt(folder, monkeypatch):
    checkpoints, _ = open_again(folder)
    with checkpoints, monkeypatch.context() as patch:
        checkpoints.restore_latest(make_state(0))
        patch.setattr("fmfa_jax.run.checkpoints.not_finite", lambda state: [])
        checkpoints.save(6, poisoned(6))
    again, said = open_again(folder)
    state, step = again.restore_latest(make_state(0))
    assert step == 5
    assert_same(state, make_state(5))
    assert len(said) == 1 and str(folder / "6") in said[0]
    assert said[0].endswith("NaN or infinity in params/tower/kernel")


def test_a_step_is_saved_once(folder):
    checkpoints, _ = open_again(folder)
    with checkpoints:
        checkpoints.restore_latest(make_state(0))
        assert not checkpoints.save(5, make_state(5))
        assert checkpoints.save(6, make_state(6))
        assert not checkpoints.save(6, make_state(6))


def test_newer_steps_are_not_overtaken_unseen(folder):
    checkpoints, _ = open_again(folder)
    with pytest.raises(ValueError, match=r"holds step 5, so step 4 would be lost"):
        checkpoints.save(4, make_state(4))


KILLED = """
import os, signal, sys
import jax.numpy as jnp
from fmfa_jax.run import manifests
from fmfa_jax.run.checkpoints import Checkpoints

checkpoints = Checkpoints(sys.argv[1], identity={"run": 1}, keep=2)
checkpoints.save(1, {"x": jnp.arange(1000)})
checkpoints.wait()
# The worst moment: all arrays are on disk, the manifest and the rename are not.
manifests.seal = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
checkpoints.save(2, {"x": jnp.arange(1000) * 2})
checkpoints.wait()
"""


def test_kill_during_a_save_leaves_the_last_one(tmp_path):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    unfinished = [path for path in tmp_path.iterdir() if path.name != "1"]
    assert len(unfinished) == 1  # the kill did come in the middle

    checkpoints, said = open_again(tmp_path, identity={"run": 1})
    with checkpoints:
        state, step = checkpoints.restore_latest({"x": jnp.zeros(1000, jnp.int32)})
        assert step == 1 and not said
        np.testing.assert_array_equal(state["x"], np.arange(1000))
        assert checkpoints.save(2, {"x": jnp.arange(1000) * 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    assert manifests.verify(tmp_path / "2").step == 2
