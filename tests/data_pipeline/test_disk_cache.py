# SPDX-License-Identifier: Apache-2.0
"""The cache on disk against pictures decoded anew, whatever happens to the file."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline import disk_cache, image_cache, images
from data_pipeline.bad_images import BadImages
from data_pipeline.disk_cache import DiskCache
from data_pipeline.images import ImageError, decode_resized
from data_pipeline.loader import Material, train_batches
from data_pipeline.pictures import Pictures
from data_pipeline.records import Pair, Picture, Split
from data_pipeline.tokenizer import open_tokenizer

SIZE, COUNT = (24, 8), 7
ALL = range(COUNT)
ROOT = Path(__file__).parents[2]

FILL = """
import os, signal, sys
from pathlib import Path
from data_pipeline import disk_cache
from data_pipeline.pictures import Pictures
from tests.data_pipeline.test_disk_cache import SIZE, read_split

folder, order, killed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
split = read_split(folder)
pictures = Pictures(split, SIZE, disk_cache.DiskCache(folder / "cache", split, SIZE))
write, pixels = os.pwrite, 0

def pwrite(file, values, offset):
    global pixels
    pixels += values.nbytes > 4
    if pixels == killed:
        write(file, values.tobytes()[:values.nbytes // 2], offset)
        os.kill(os.getpid(), 9)
    return write(file, values, offset)

if killed:
    os.pwrite = pwrite
for index in map(int, order):
    pictures.read(index)
"""


def write_picture(folder: Path, number: int, seed: int = 0) -> None:
    draw = np.random.default_rng((seed, number))
    pixels = draw.integers(0, 256, (20 + number, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{number}.png")


def read_split(folder: Path) -> Split:
    pictures = [
        Picture(path.name, str(path), 1) for path in sorted(folder.glob("*.png"))
    ]
    return Split("train", tuple(pictures), tuple(Pair(i, "one") for i in ALL))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in ALL:
        write_picture(tmp_path, number)
    return tmp_path


@pytest.fixture
def split(folder: Path) -> Split:
    return read_split(folder)


def opened(folder: Path, split: Split) -> DiskCache:
    return DiskCache(folder / "cache", split, SIZE)


def filled(folder: Path, split: Split) -> DiskCache:
    """A cache with all pictures, opened anew."""
    pictures = Pictures(split, SIZE, opened(folder, split))
    for index in ALL:
        pictures.read(index)
    return opened(folder, split)


def taken(cache: DiskCache, split: Split) -> set[int]:
    """The pictures that a cache serves, each compared with its file."""
    out = np.full((COUNT, *SIZE, 3), 77, np.uint8)
    served = set(ALL) - set(cache.take(np.arange(COUNT), out))
    for index in served:
        assert np.array_equal(out[index], decode_resized(split.read(index), SIZE))
    return served


def the_file(folder: Path) -> Path:
    (file,) = (folder / "cache").iterdir()
    return file


def start(folder: Path, order: str, killed: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-c", FILL, str(folder), order, str(killed)]
    return subprocess.Popen(command, cwd=ROOT)


def test_a_later_run_finds_what_an_earlier_one_decoded(
    folder: Path, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = opened(folder, split)
    assert taken(cache, split) == set() and len(cache) == 0
    cache.add(2, lambda: decode_resized(split.read(2), SIZE))
    assert taken(cache, split) == {2}
    assert taken(opened(folder, split), split) == {2}
    later = filled(folder, split)
    assert len(later) == COUNT and taken(later, split) == set(ALL)
    rows = np.array([5, 5, 0])
    out = np.empty((3, *SIZE, 3), np.uint8)
    assert not len(later.take(rows, out))
    monkeypatch.setattr(Split, "read", None)
    pictures = Pictures(split, SIZE, opened(folder, split))
    assert all(
        np.array_equal(pictures.read(int(i)), out[row]) for row, i in enumerate(rows)
    )


def test_processes_fill_it_together_and_one_is_killed_in_the_middle_of_a_picture(
    folder: Path, split: Split
) -> None:
    first, other, killed = (
        start(folder, "012"),
        start(folder, "2103"),
        start(folder, "654", killed=2),
    )
    assert (first.wait(), other.wait()) == (0, 0)
    assert killed.wait() == -signal.SIGKILL
    assert taken(opened(folder, split), split) == {0, 1, 2, 3, 6}
    assert taken(filled(folder, split), split) == set(ALL)


def test_pixels_that_a_power_failure_lost_are_not_served(
    folder: Path, split: Split
) -> None:
    filled(folder, split)
    with open(the_file(folder), "r+b") as file:
        file.seek(4 * COUNT + 3 * 24 * 8 * 3 + 100)
        file.write(bytes(64))
    cache = opened(folder, split)
    assert taken(cache, split) == set(ALL) - {3}
    assert taken(filled(folder, split), split) == set(ALL)
    assert taken(cache, split) == set(ALL)


def test_a_changed_picture_is_decoded_again_by_all(folder: Path, split: Split) -> None:
    filled(folder, split)
    trusting = opened(folder, split)
    assert taken(trusting, split) == set(ALL)
    write_picture(folder, 4, seed=1)
    os.utime(folder / "5.png", ns=(0, 0))
    (folder / "6.png").unlink()
    later = opened(folder, split)
    assert taken(later, split) == {0, 1, 2, 3}
    pictures = Pictures(split, SIZE, later)
    new = pictures.read(4)
    assert np.array_equal(new, decode_resized(split.read(4), SIZE))
    with pytest.raises(FileNotFoundError, match=r"6\.png"):
        pictures.read(6)
    # Whoever has trusted the old pixels notices that they have been replaced.
    out = np.empty((1, *SIZE, 3), np.uint8)
    assert not len(trusting.take(np.array([4]), out))
    assert np.array_equal(out[0], new)


def test_pixels_that_are_being_replaced_are_not_served(
    folder: Path, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, other = filled(folder, split), opened(folder, split)
    assert taken(cache, split) == set(ALL)
    served, write = [], os.pwrite

    def watched(file: int, values: np.ndarray, offset: int) -> int:
        written = write(file, values, offset)
        served.append(taken(cache, split))
        return written

    monkeypatch.setattr(os, "pwrite", watched)
    other.add(0, lambda: decode_resized(split.read(0), SIZE))
    assert served == [set(ALL) - {0}, set(ALL) - {0}, set(ALL)]


def test_pixels_that_began_to_be_replaced_after_a_look_are_not_served(
    folder: Path, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting, fresh = filled(folder, split), opened(folder, split)
    assert taken(trusting, split) == set(ALL)
    copy, tag = disk_cache.copy_rows, the_file(folder).read_bytes()[:4]

    def write_tag(value: bytes) -> None:
        with open(the_file(folder), "r+b") as file:
            file.write(value)

    def copy_late(*arguments: np.ndarray) -> None:
        copy(*arguments)
        write_tag(bytes(4))

    monkeypatch.setattr(disk_cache, "copy_rows", copy_late)
    for cache in (trusting, fresh):
        write_tag(tag)
        assert taken(cache, split) == set(ALL) - {0}


def test_a_file_that_was_cut_off_is_completed(folder: Path, split: Split) -> None:
    filled(folder, split)
    size = the_file(folder).stat().st_size
    for left in (size - 1, size // 2, 4 * COUNT, 10, 0):
        os.truncate(the_file(folder), left)
        assert taken(opened(folder, split), split) == {
            i for i in ALL if 4 * COUNT + (i + 1) * 24 * 8 * 3 <= left
        }
        assert the_file(folder).stat().st_size == size
        assert taken(filled(folder, split), split) == set(ALL)


def test_what_changes_all_pictures_makes_another_file(
    folder: Path, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(folder, split)
    DiskCache(folder / "cache", split, (8, 24))
    monkeypatch.setattr(images, "VERSION", images.VERSION + 1)
    assert taken(opened(folder, split), split) == set()
    moved = [Picture(i.file, "/elsewhere" + i.path, 1) for i in split.images]
    opened(folder, Split("train", tuple(moved), split.pairs))
    assert len(list((folder / "cache").iterdir())) == 4


def test_only_the_owner_can_see_it(folder: Path, split: Split) -> None:
    before = os.umask(0)
    try:
        opened(folder, split)
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "cache").stat().st_mode) == 0o700
    assert stat.S_IMODE(the_file(folder).stat().st_mode) == 0o600


def test_it_lies_in_the_users_cache_folder_unless_a_folder_is_named(
    folder: Path, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "xdg"))
    image_cache.open_cache("disk", split, SIZE)
    assert len(list((folder / "xdg" / "fmfa_jax").iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(folder / "home"))
    image_cache.open_cache("disk", split, SIZE)
    assert len(list((folder / "home" / ".cache" / "fmfa_jax").iterdir())) == 1


def test_a_folder_that_cannot_be_written_and_a_full_disk_say_what_to_change(
    folder: Path, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice = r"cannot be opened: .*%s.* Choose another config\.data\.cache, or a folder"
    for place in ("/proc/cache", str(folder / "0.png" / "cache")):
        with pytest.raises(OSError, match=advice % place):
            image_cache.open_cache("disk", split, SIZE, place)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=advice % "No space left"):
        image_cache.open_cache("disk", split, SIZE, str(folder / "cache"))


def test_a_failing_disk_does_not_make_pictures_unreadable(
    folder: Path, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = Pictures(split, SIZE, opened(folder, split))
    for written in (lambda *_: 1, lambda *_: os.close(-1)):
        monkeypatch.setattr(os, "pwrite", written)
        with pytest.raises(RuntimeError, match=r"cannot be written: .* Choose another"):
            pictures.read(0)
    monkeypatch.undo()
    assert taken(opened(folder, split), split) == set()


def test_unreadable_pictures_are_listed_in_each_run(folder: Path, split: Split) -> None:
    (folder / "2.png").write_bytes(b"no picture")
    # One in a hundred is tolerated.
    many = [split.images[2 if i == 2 else i % 2] for i in range(100)]
    split = Split("train", tuple(many), tuple(Pair(i, "") for i in range(100)))
    listed = []
    for _ in range(2):
        bad = BadImages()
        material = Material.of(
            split,
            tokenizer=open_tokenizer("clip"),
            image_size=SIZE,
            context_length=4,
            cache="disk",
            cache_dir=str(folder / "cache"),
        )
        for batch in train_batches(
            material,
            batch_size=50,
            seed=0,
            start_step=0,
            stop_step=2,
            bad_images=bad,
        ):
            assert 2 not in batch["pair"]
        listed.append([entry.path for entry in bad.entries])
    assert listed == [[str(folder / "2.png")]] * 2
    with pytest.raises(ImageError):
        Pictures(split, SIZE, opened(folder, split)).read(2)
