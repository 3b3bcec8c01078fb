# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: exact, on any number of devices, and never believed when damaged."""

import contextlib
import json
import os
import re
import resource
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

from fmfa_jax.run import manifests, states
from fmfa_jax.run.belonging import CheckpointMismatchError
from fmfa_jax.run.checkpoints import Checkpoints
from fmfa_jax.run.disk import SaveError
from fmfa_jax.run.identity import digest
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


def body_of(step):
    return json.loads((step / "manifest.json").read_text())["body"]


def resealed(change):
    """A manifest that was changed and given the digest of what it says now."""

    def act(step):
        body = body_of(step)
        body = change(body) or body
        text = {"sha256": manifests._digest_of(body), "body": body}
        (step / "manifest.json").write_text(json.dumps(text))

    return act


def written(content):
    return lambda step: (step / "manifest.json").write_bytes(content)


def replaced(make):
    """Something else in the step's place."""

    def act(step):
        step.rename(step.with_name("elsewhere"))
        make(step)

    return act


def renamed(step):
    shutil.rmtree(step)
    shutil.copytree(step.with_name("3"), step)


FORM = "does not have the form"
# What is found wrong before an array is read.
UNUSABLE = {
    "deep": (written(b"[" * 99999), "unreadable"),
    "not UTF-8": (written(b"\xff\xfe\x00"), "unreadable"),
    "a long number": (written(b"9" * 5000), "unreadable"),
    "a list": (written(b"[]"), "unreadable"),
    "null": (written(b'{"body": null, "sha256": ""}'), "does not match its own"),
    "a body in a list": (resealed(lambda body: [body]), FORM),
    "no files": (resealed(lambda body: body.pop("files") and None), FORM),
    "files in a list": (resealed(lambda body: body.update(files=[])), FORM),
    "no file named": (resealed(lambda body: body.update(files={})), "not saved with"),
    "a file too many": (
        resealed(lambda body: body["files"].update({"../3/state/_METADATA": {}})),
        FORM,
    ),
    "a file elsewhere": (
        resealed(
            lambda body: body["files"].update(
                {"../3/manifest.json": {"bytes": 1, "sha256": ""}}
            )
        ),
        "../3/manifest.json is missing",
    ),
    "a file without size": (
        resealed(lambda body: body["files"].update(x={"sha256": ""})),
        FORM,
    ),
    "a key too many": (resealed(lambda body: body.update(x=1)), FORM),
    "the step in words": (resealed(lambda body: body.update(step="5")), FORM),
    "another step": (resealed(lambda body: body.update(step=99)), "saved as step 99"),
    "an identity in a list": (resealed(lambda body: body.update(identity=[])), FORM),
    "arrays of null": (resealed(lambda body: body.update(arrays=None)), FORM),
    "array of numbers": (resealed(lambda body: body["arrays"].update(x=1)), FORM),
    "a surplus file": (
        lambda step: (step / "state" / "extra").write_text("x"),
        "state/extra was not saved with it",
    ),
    "a surplus pipe": (lambda step: os.mkfifo(step / "pipe"), "pipe was not saved"),
    "a folder for a file": (
        lambda step: [(path.unlink(), path.mkdir()) for path in [largest(step)]],
        "is missing",
    ),
    "renamed": (renamed, "saved as step 3"),
    "a file": (replaced(lambda step: step.write_text("x")), "no folder"),
    "a link": (
        replaced(lambda step: step.symlink_to(step.with_name("elsewhere"))),
        "it is a link",
    ),
    "a link to itself": (replaced(lambda step: step.symlink_to(step)), "it is a link"),
}

DAMAGES = {
    "surplus": UNUSABLE["a surplus file"],
    "a file": UNUSABLE["a file"],
    "a link": UNUSABLE["a link"],
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


@pytest.mark.parametrize("damage", UNUSABLE)
def test_what_is_not_as_it_was_saved_is_named(folder, damage):
    act, reason = UNUSABLE[damage]
    act(folder / "5")
    with pytest.raises(CorruptCheckpointError, match=re.escape(reason)) as error:
        manifests.verify(folder / "5")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", [".DS_Store", "state/.nfs01", "Thumbs.db"])
def test_what_file_browsers_leave_is_no_damage(folder, name):
    (folder / "5" / name).write_text("x")
    assert manifests.verify(folder / "5").step == 5


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
    assert os.path.lexists(folder / "corrupt" / "5")


def test_nothing_that_was_set_aside_is_lost(folder):
    for number in (1, 2):
        (folder / "5" / "manifest.json").write_text(str(number))
        checkpoints, _ = open_again(folder)
        with checkpoints:
            checkpoints.restore_latest(make_state(0))
            checkpoints.save(5, make_state(5))
    aside = [folder / "corrupt" / name / "manifest.json" for name in ("5", "5-2")]
    assert [path.read_text() for path in aside] == ["1", "2"]


BESIDE = ["20 copy", "5.bak", "05", "٣", "5.orbax-checkpoint-tmp-1", "-1"]


def test_what_lies_beside_the_checkpoints_is_left_alone(folder):
    for name in BESIDE:
        shutil.copytree(folder / "5", folder / name)
    for name in (".DS_Store", "notes.txt", "6.zip"):
        (folder / name).write_text(name)
    left = {path.name for path in folder.iterdir()} - {"3", "5"}
    checkpoints, said = open_again(folder)
    with checkpoints:
        assert checkpoints.restore_latest(make_state(0)).step == 5
        for step in (6, 20, 21):
            assert checkpoints.save(step, make_state(step))
    assert not said
    assert {path.name for path in folder.iterdir()} == left | {"20", "21"}
    for name in BESIDE:
        assert manifests._read_body(folder / name / "manifest.json")["step"] == 5


def test_what_is_removed_while_it_is_saved_is_not_sealed(folder, monkeypatch):
    check = states.check_stored

    def removed(step, names):
        shutil.rmtree(step / "state" / "d")
        check(step, names)

    monkeypatch.setattr(states, "check_stored", removed)
    checkpoints, _ = open_again(folder)
    checkpoints.restore_latest(make_state(0))
    checkpoints.save(6, make_state(6))
    with pytest.raises(SaveError, match=r"step 6 could not be saved.*read back"):
        checkpoints.close()
    again, said = open_again(folder)
    assert again.restore_latest(make_state(0)).step == 5 and not said


@contextlib.contextmanager
def full_disk():
    """As real as a full one: no file may have more than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_tried_again_at_the_next_step(folder):
    checkpoints, said = open_again(folder, most_failed=2)
    with checkpoints:
        checkpoints.restore_latest(make_state(0))
        for step in (6, 9):  # what succeeds between them starts the count again
            with full_disk():
                checkpoints.save(step, make_state(step))
                checkpoints.save(step + 1, make_state(step + 1))
                told = said[-1]
            assert f"step {step} could not be saved: " in told and "\n" not in told
            assert "File too large" in told and "(1 in a row" in told
            checkpoints.save(step + 2, make_state(step + 2))
            assert checkpoints.saved() == folder / str(step + 2)
    names = {path.name for path in folder.iterdir()}
    assert "11" in names and all(name.isdecimal() for name in names)
    again, _ = open_again(folder)
    state, step = again.restore_latest(make_state(0))
    assert step == 11
    assert_same(state, make_state(11))


def test_too_many_failed_saves_end_it_and_the_last_counts_at_once(folder):
    checkpoints, said = open_again(folder, most_failed=1)
    checkpoints.restore_latest(make_state(0))
    with full_disk():
        checkpoints.save(6, make_state(6))
        checkpoints.save(7, make_state(7))
        with pytest.raises(SaveError, match="step 7 could not be saved"):
            checkpoints.save(8, make_state(8))
    assert len(said) == 1
    assert checkpoints.saved() == folder / "5"
    with full_disk():
        checkpoints.save(9, make_state(9))
        with pytest.raises(SaveError, match="step 9 could not be saved"):
            checkpoints.wait()
    again, _ = open_again(folder)
    assert again.restore_latest(make_state(0)).step == 5


def test_a_folder_that_was_removed_is_not_made_again(folder):
    checkpoints, _ = open_again(folder)
    with pytest.raises(FileNotFoundError, match="was removed"), checkpoints:
        checkpoints.restore_latest(make_state(0))
        checkpoints.save(6, make_state(6))
        checkpoints.wait()
        shutil.rmtree(folder)
        checkpoints.save(7, make_state(7))
    assert not folder.exists()


def test_a_state_that_cannot_be_restored_is_passed_over(folder):
    """A seal cannot know whether Orbax will make sense of what it covers."""
    manifest = manifests.verify(folder / "5")
    (folder / "5" / "state" / "_METADATA").write_text("{")
    manifests.seal(folder / "5", manifest)
    checkpoints, said = open_again(folder)
    assert checkpoints.restore_latest(make_state(0)).step == 3
    assert len(said) == 1 and "cannot be restored" in said[0]


ODD = ["a b", "{x}", "x]", "%2F%41", "'\"", "a\nb", "\x1b[31m", "~", "Straße", "#&;$"]


@pytest.mark.parametrize("name", ODD)
def test_a_folder_may_have_any_name(saved, tmp_path, name):
    folder = Path(shutil.copytree(saved, tmp_path / name / "checkpoints"))
    checkpoints, said = open_again(folder)
    with checkpoints:
        checkpoints.restore_latest(make_state(0))
        checkpoints.save(6, make_state(6))
    again, _ = open_again(folder)
    state, step = again.restore_latest(make_state(0))
    assert step == 6 and not said
    assert_same(state, make_state(6))


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


def test_contents_differ_in_words(folder):
    ours, theirs = "a" * 64, "b" * 64
    one = {"seed": 1, "tokenizer entries": ours, "first weights": "none"}
    with Checkpoints(folder / "own", identity=one, told={"val people": ours}) as kept:
        kept.save(1, {"x": jnp.zeros(2)})
    other = one | {"tokenizer entries": theirs}
    checkpoints, _ = open_again(folder / "own", identity=other)
    with pytest.raises(CheckpointMismatchError) as error:
        checkpoints.restore_latest({"x": jnp.zeros(2)})
    lines = str(error.value).splitlines()[1:-1]
    assert lines == ["  tokenizer entries: not those of the checkpoint"]
    told = {"val people": theirs, "test people": ours}
    checkpoints, said = open_again(folder / "own", identity=one, told=told)
    assert checkpoints.restore_latest({"x": jnp.zeros(2)}).step == 1
    assert len(said) == 1 and "was saved: test people, val people; train" in said[0]


def test_what_an_earlier_version_saved_is_taken_and_told(tmp_path):
    """It had paths and one digest of all data; nobody can compare these."""
    old = {"seed": 1, "init.path": "/a.pt", "data.tokenizer": "clip"}
    old |= {"data.fingerprint": "c" * 64}
    with Checkpoints(tmp_path, identity=old) as kept:
        kept.save(1, {"x": jnp.zeros(2)})
    resealed(lambda body: body.pop("told") and None)(tmp_path / "1")
    new = {"seed": 1, "tokenizer entries": "a" * 64, "first weights": "none"}
    checkpoints, said = open_again(tmp_path, identity=new, told={"val people": ""})
    assert checkpoints.restore_latest({"x": jnp.zeros(2)}).step == 1
    assert len(said) == 1 and "an earlier version" in said[0]
    checkpoints, _ = open_again(tmp_path, identity=new | {"seed": 2})
    with pytest.raises(CheckpointMismatchError, match="seed: the checkpoint has 1"):
        checkpoints.restore_latest({"x": jnp.zeros(2)})


def test_a_key_that_was_added_since_counts_once_it_is_used(tmp_path):
    old = {"seed": 1, "losses.itc": 1.0}
    with Checkpoints(tmp_path, identity=old) as kept:
        kept.save(1, {"x": jnp.zeros(2)})
    new = old | {"losses.tal": 0.0, "loss.tal_tau": 0.015}
    assert digest(new) == digest(old) != digest(new | {"losses.tal": 1.0})
    checkpoints, said = open_again(tmp_path, identity=new)
    assert checkpoints.restore_latest({"x": jnp.zeros(2)}).step == 1 and not said
    checkpoints, _ = open_again(tmp_path, identity=new | {"losses.tal": 1.0})
    with pytest.raises(CheckpointMismatchError) as error:
        checkpoints.restore_latest({"x": jnp.zeros(2)})
    lines = str(error.value).splitlines()[1:-1]
    assert lines == ["  losses.tal: the checkpoint has 0.0, this run 1.0"]


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
