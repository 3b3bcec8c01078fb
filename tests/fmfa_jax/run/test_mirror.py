# SPDX-License-Identifier: Apache-2.0
"""What lies in a store after each of the requests of a save was the last."""

import itertools
import os
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_pipeline.buckets import Bucket, StoreError
from fmfa_jax.run import manifests
from fmfa_jax.run.bucket_lock import BucketLock
from fmfa_jax.run.lock import LOCK, InUseError
from fmfa_jax.run.manifests import Manifest
from fmfa_jax.run.mirror import Mirror
from tests.stores import NEEDED, REFUSAL


class KilledError(BaseException):
    """What a process does not survive."""


class Mortal(MemoryFileSystem):
    """A store whose client is killed before its n-th change."""

    protocol = "mortal"
    store: dict = {}  # noqa: RUF012 -- all instances share it, as in the original
    pseudo_dirs: list = [""]  # noqa: RUF012
    left = itertools.repeat(1)

    def pipe_file(self, path, value, mode="overwrite", **options):
        if not next(self.left, 0):
            raise KilledError
        super().pipe_file(path, value, mode=mode, **options)

    def rm_file(self, path):
        if not next(self.left, 0):
            raise KilledError
        super().rm_file(path)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("mortal://", "memory://"))


fsspec.register_implementation("mortal", Mortal, clobber=True)


@pytest.fixture(params=NEEDED)
def url(request, stores, tmp_path):
    return stores.url(request.param, f"{tmp_path.name}-{os.getpid()}")


def mirror(url: str, folder: Path, lock=None) -> Mirror:
    made = Mirror(Bucket(url), folder, lock)
    made.bring()
    return made


def saved(folder: Path, step: int) -> Path:
    """A checkpoint as it is before its seal, with the log up to it."""
    made = folder / "checkpoints" / f"{step}.orbax-checkpoint-tmp"
    (made / "state/d").mkdir(parents=True)
    (made / "state/d/0").write_bytes(bytes([step]) * 9)
    (made / "_CHECKPOINT_METADATA").write_text("{}")
    manifests.seal(made, Manifest(step, {"run": 1}, {"a": "uint8[9]"}))
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(f'{{"step": {step}}}\n')
    return made


def step(mirrored: Mirror, folder: Path, number: int, *, keep: int) -> None:
    """What a run does of a step with a checkpoint, as `Checkpoints` orders it."""
    made = saved(folder, number)
    mirrored.seal(number, made)
    made.rename(made.with_name(str(number)))
    left = sorted(int(path.name) for path in made.parent.iterdir())[-keep:]
    mirrored.keep(left)


def restored(url: str, folder: Path) -> list[int]:
    """The steps of the checkpoints that a new host gets, verified."""
    mirror(url, folder)
    kept = folder / "checkpoints"
    names = [path.name for path in kept.iterdir()] if kept.is_dir() else []
    for name in names:
        assert str(manifests.verify(kept / name).step) == name
    return sorted(map(int, names))


def test_a_run_folder_comes_back_as_it_was_left(url, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    mirrored = mirror(url, one)
    for name in (LOCK, ".hidden", "compiled/program", "eval/5/table.md", "init.json"):
        (one / name).parent.mkdir(parents=True, exist_ok=True)
        (one / name).write_text(name)
    step(mirrored, one, 5, keep=2)
    step(mirrored, one, 6, keep=2)
    (one / "init.json").unlink()
    step(mirrored, one, 7, keep=2)
    two.mkdir()
    (two / "left over").touch()
    (two / LOCK).write_text("mine")
    assert restored(url, two) == [6, 7]
    there = {p.relative_to(two).as_posix() for p in two.rglob("*") if p.is_file()}
    assert {name for name in there if not name.startswith("checkpoints/")} == {
        LOCK,
        "eval/5/table.md",
        "metrics.jsonl",
    }
    assert (two / LOCK).read_text() == "mine"
    assert (two / "metrics.jsonl").read_text().count("\n") == 3
    reader = Mirror(Bucket(url), tmp_path / "three", None)
    reader.bring(checkpoints=False)
    assert not (tmp_path / "three" / "checkpoints").exists()


def test_what_has_not_changed_is_not_put_again(url, tmp_path):
    mirrored = mirror(url, tmp_path / "one")
    (tmp_path / "one" / "a").write_text("ours")
    mirrored.push()
    Bucket(url).write("a", b"theirs")
    mirrored.push()
    assert Bucket(url).read("a") == b"theirs"
    (tmp_path / "one" / "a").write_text("ours!")
    mirrored.push()
    assert Bucket(url).read("a") == b"ours!"


def test_a_kill_before_any_change_leaves_a_sound_folder(tmp_path):
    """The slow oracle of the order: each prefix of the requests is tried."""
    for after in range(99):
        url, one = f"mortal://runs/{after}", tmp_path / f"one{after}"
        Mortal.left = itertools.repeat(1)
        mirrored = mirror(url, one)
        step(mirrored, one, 5, keep=1)
        Mortal.left = iter([1] * after)
        try:
            step(mirrored, one, 6, keep=1)
        except KilledError:
            pass
        else:
            break
        Mortal.left = itertools.repeat(1)
        two = tmp_path / f"two{after}"
        steps = restored(url, two)
        assert steps in ([5], [5, 6], [6])
        # The log is never behind a checkpoint, or lines would be missing for ever.
        assert (two / "metrics.jsonl").read_text().count("\n") >= max(steps) - 4
        # Whoever comes next saves the same step over what is left of it.
        if steps == [5]:
            mirrored = mirror(url, two)
            step(mirrored, two, 6, keep=1)
            assert restored(url, tmp_path / f"three{after}") == [6]
    assert after == 7, "so many changes"


def test_a_corrupt_checkpoint_is_replaced(url, tmp_path):
    mirrored = mirror(url, tmp_path / "one")
    step(mirrored, tmp_path / "one", 5, keep=1)
    Bucket(url).write("checkpoints/5/state/surplus", b"?")
    with pytest.raises(manifests.CorruptCheckpointError):
        restored(url, tmp_path / "two")
    other = mirror(url, tmp_path / "three")
    (tmp_path / "three/checkpoints/5").rename(tmp_path / "aside")
    step(other, tmp_path / "three", 5, keep=1)
    assert restored(url, tmp_path / "four") == [5]


@pytest.mark.parametrize("kind", ["s3", "gs"])
@pytest.mark.parametrize("part", ["metrics.jsonl", "state/d/0", "manifest.json"])
def test_a_put_that_is_refused_fails_the_save_and_not_the_run(
    kind, part, stores, tmp_path
):
    line, one = stores.line(kind), tmp_path / "one"
    url = stores.url(kind, f"{tmp_path.name}-{os.getpid()}")
    mirrored = mirror(url, one)
    step(mirrored, one, 5, keep=2)
    line.fail(part.encode(), answer=REFUSAL)
    with pytest.raises(StoreError, match="could not write it"):
        step(mirrored, one, 6, keep=2)
    assert line.left == 0 and restored(url, tmp_path / "two") == [5]
    (one / "checkpoints/6.orbax-checkpoint-tmp").rename(tmp_path / "failed")
    step(mirrored, one, 7, keep=2)
    assert restored(url, tmp_path / "three") == [5, 7]


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_line_that_is_cut_is_tried_again(kind, stores, tmp_path):
    line, one = stores.line(kind), tmp_path / "one"
    url = stores.url(kind, f"{tmp_path.name}-{os.getpid()}")
    mirrored = mirror(url, one)
    line.fail(b"manifest.json")
    step(mirrored, one, 5, keep=2)
    assert line.left == 0 and restored(url, tmp_path / "two") == [5]


class Overtaken(BucketLock):
    """A lock that another run takes before its n-th check."""

    left = 0

    def check(self):
        if not self.left:
            self.rival.take()
        self.left -= 1
        super().check()


@pytest.mark.parametrize("checks", [0, 1])
def test_who_has_lost_the_lock_seals_nothing(checks, tmp_path, url):
    one = tmp_path / "one"
    mirror(url, one)
    (one / LOCK).touch()
    rival = BucketLock(Bucket(url), one, say=print)
    lock = Overtaken(Bucket(url), one, say=print)
    lock.left, lock.rival = checks, rival
    lock.take()
    with pytest.raises(InUseError):
        step(mirror(url, one, lock), one, 5, keep=1)
    assert Bucket(url).read("checkpoints/5/manifest.json") is None
    rival.release()
    lock.release()
