# SPDX-License-Identifier: Apache-2.0
"""Batches against a slow reader that uses only Pillow and the order."""

import inspect
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline import image_cache, loader, order, prefetch, room
from data_pipeline.bad_images import BadImage, BadImages, TooManyBadImagesError
from data_pipeline.images import ImageError
from data_pipeline.loader import Material
from data_pipeline.pictures import Pictures
from data_pipeline.records import Pair, Picture, Split
from data_pipeline.tokenizer import Tokenizer, open_tokenizer

SIZE = (24, 8)
LENGTH = 12
Batches = list[dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return open_tokenizer("clip")


def write_split(
    folder: Path, *, images: int = 14, broken: tuple[int, ...] = ()
) -> Split:
    """Write JPEGs of people 100, 101, ... (2 pictures each, 2 captions per picture)."""
    draw = np.random.default_rng(0)
    pictures = []
    for i in range(images):
        path = folder / f"{i}.jpg"
        pixels = draw.integers(0, 256, (20 + i, 10 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        if i in broken:
            path.write_bytes(path.read_bytes()[:200])
        pictures.append(Picture(f"{i}.jpg", str(path), 100 + i // 2))
    pairs = [Pair(i, f"person {i} says {n}") for i in range(images) for n in "ab"]
    return Split("train", tuple(pictures), tuple(pairs))


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return write_split(tmp_path_factory.mktemp("imgs"))


ORDER = inspect.signature(loader.train_batches).parameters


def train(split: Split, tokenizer: Tokenizer, **changes: object) -> Batches:
    drawn = {"image_size": SIZE, "context_length": LENGTH}
    order = {"batch_size": 8, "seed": 3, "start_step": 0, "stop_step": 5}
    for name, value in changes.items():
        (order if name in ORDER else drawn)[name] = value
    order.setdefault("bad_images", BadImages())
    material = Material.of(split, tokenizer=tokenizer, **drawn)
    return list(loader.train_batches(material, **order))


def oracle(
    split: Split, tokenizer: Tokenizer, ids: np.ndarray
) -> dict[str, np.ndarray]:
    """Read one batch, row by row, as a Pillow user would."""
    rows = []
    for i in ids:
        picture = split.images[split.pairs[i].image]
        image = Image.open(picture.path).resize(SIZE[::-1], Image.Resampling.BILINEAR)
        tokens = tokenizer.encode([split.pairs[i].caption], LENGTH)[0]
        person = picture.person - 100
        rows.append((np.array(image), tokens, person, split.pairs[i].image, i, True))
    names = ("image", "tokens", "person", "image_id", "pair", "valid")
    columns = zip(*rows, strict=True)
    return {n: np.array(list(c)) for n, c in zip(names, columns, strict=True)}


def same(left: Batches, right: Batches) -> bool:
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
        for a, b in zip(left, right, strict=True)
    )


def joined(parts: list[Batches]) -> Batches:
    """Concatenate the rows of all processes, in the order of the processes."""
    return [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]


def test_training_batches_equal_the_slow_reader(
    split: Split, tokenizer: Tokenizer
) -> None:
    batches = train(split, tokenizer)
    wanted = [
        oracle(split, tokenizer, order.batch_ids(s, seed=3, size=28, batch_size=8))
        for s in range(5)
    ]
    assert same(batches, wanted)
    kinds = {name: (a.dtype.name, a.shape) for name, a in batches[0].items()}
    assert kinds == {
        "image": ("uint8", (8, *SIZE, 3)),
        "tokens": ("int32", (8, LENGTH)),
        "person": ("int32", (8,)),
        "image_id": ("int32", (8,)),
        "pair": ("int32", (8,)),
        "valid": ("bool", (8,)),
    }


def test_resuming_is_starting_there(split: Split, tokenizer: Tokenizer) -> None:
    whole = train(split, tokenizer, stop_step=9)
    assert same(train(split, tokenizer, start_step=4, stop_step=9), whole[4:])
    assert train(split, tokenizer, start_step=4, stop_step=4) == []
    assert not same(train(split, tokenizer, seed=4), whole[:5])


@pytest.mark.parametrize("sampler", order.SAMPLERS)
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_global_batch(
    split: Split, tokenizer: Tokenizer, processes: int, sampler: str
) -> None:
    common = {"sampler": sampler, "per_identity": 2}
    whole = train(split, tokenizer, **common)
    parts = [
        train(split, tokenizer, process_index=p, process_count=processes, **common)
        for p in range(processes)
    ]
    assert same(joined(parts), whole)


def test_captions_are_cut_to_the_longest_of_their_batch(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """The oracle is the uncut batch; all processes cut to the same length."""
    long = write_split(tmp_path, images=14)
    words = [" ".join(["red"] * (n % 11)) for n in range(len(long.pairs))]
    pairs = [Pair(p.image, w) for p, w in zip(long.pairs, words, strict=True)]
    long = replace(long, pairs=tuple(pairs))
    buckets, widths = (4, 7), set()
    for process in (0, 1):
        share = {"process_index": process, "process_count": 2, "batch_size": 2}
        whole = train(long, tokenizer, stop_step=12, **share)
        cut = train(long, tokenizer, stop_step=12, caption_buckets=buckets, **share)
        for step, (ours, theirs) in enumerate(zip(cut, whole, strict=True)):
            ids = order.batch_ids(step, seed=3, size=28, batch_size=2)
            longest = max(len(words[i].split()) for i in ids) + 2
            width = next(n for n in (*buckets, LENGTH) if n >= min(longest, LENGTH))
            assert ours["tokens"].shape == (1, width)
            widths.add(width)
            assert not theirs["tokens"][:, width:].any()
            same_rows = theirs | {"tokens": theirs["tokens"][:, :width]}
            assert same([ours], [same_rows])
    assert widths == {*buckets, LENGTH}


def test_a_replacement_fits_into_the_cut(tmp_path: Path, tokenizer: Tokenizer) -> None:
    split = write_split(tmp_path, images=400, broken=(0, 1, 2))
    words = ["red " * (20 if i > 320 else 1) for i in range(len(split.pairs))]
    pairs = [Pair(p.image, w) for p, w in zip(split.pairs, words, strict=True)]
    split = replace(split, pairs=tuple(pairs))
    cut = train(
        split, tokenizer, batch_size=1, stop_step=800, caption_buckets=(4,), seed=0
    )
    for row in cut:
        caption = split.pairs[row["pair"][0]].caption
        whole = tokenizer.encode([caption], LENGTH)[0]
        np.testing.assert_array_equal(row["tokens"][0], whole[: row["tokens"].shape[1]])
        assert not whole[row["tokens"].shape[1] :].any()


@pytest.mark.parametrize("buckets", [(7, 4), (1,), (LENGTH,)])
def test_impossible_buckets_are_refused(
    split: Split, tokenizer: Tokenizer, buckets: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=rf"increasing lengths from 2 to {LENGTH - 1}"):
        train(split, tokenizer, caption_buckets=buckets)


def test_the_identity_sampler_groups_people(split: Split, tokenizer: Tokenizer) -> None:
    for batch in train(split, tokenizer, sampler="identity", per_identity=4):
        groups = batch["person"].reshape(2, 4)
        assert (groups == groups[:, :1]).all() and groups[0, 0] != groups[1, 0]


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_cache_changes_nothing_and_saves_reading(
    tmp_path: Path, tokenizer: Tokenizer, cache: str, caplog: pytest.LogCaptureFixture
) -> None:
    split = write_split(tmp_path)
    folder = tmp_path / "cache"
    settings = {"cache": cache, "cache_dir": str(folder), "stop_step": 12}
    wanted = train(split, tokenizer, stop_step=12)
    with caplog.at_level(logging.INFO):
        assert same(train(split, tokenizer, **settings), wanted)
    assert "cache of 14 decoded pictures: up to 0.00 GB" in caplog.text
    kept = image_cache.open_cache(cache, split, SIZE, str(folder))
    pictures = Pictures(split, SIZE, kept)
    first = [pictures.read(i).copy() for i in range(14)]
    for picture in split.images:
        Path(picture.path).unlink()
    for i in range(14):
        assert np.array_equal(pictures.read(i), first[i])
    assert [path.name for path in tmp_path.iterdir()] == ["cache"] * (cache == "disk")


def test_a_cache_that_does_not_fit_is_refused(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert image_cache.open_cache("none", split, SIZE) is None
    with pytest.raises(ValueError, match=r"cache='ram' is not known.* none, memory"):
        image_cache.open_cache("ram", split, SIZE)
    one = replace(split, images=split.images[:1], pairs=split.pairs[:1])
    huge = (24 * 10**6, 8 * 10**5)
    for kind in ("memory", "disk"):
        with pytest.raises(OSError, match=rf"the {kind} cache .* needs 57600\.00 GB"):
            image_cache.open_cache(kind, one, huge, str(tmp_path))
    monkeypatch.setattr(room, "free_memory", lambda: 1000 * 24 * 8 * 3)
    image_cache.MemoryCache(900, SIZE)
    with pytest.raises(OSError, match="may take 90%"):
        image_cache.MemoryCache(901, SIZE)


def test_free_memory_respects_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_CGROUP", tmp_path)
    host = room.free_memory()
    assert host > 10_000_000
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.max").write_text("5000\n")
    assert room.free_memory() == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert room.free_memory() > 10_000_000
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "none")
    assert room.free_memory() > 10_000_000


def test_unreadable_pictures_are_replaced_and_listed(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    images, size = 200, 120
    split = write_split(tmp_path, images=images, broken=(7,))
    Path(split.images[11].path).unlink()
    settings = {"batch_size": size, "stop_step": 4}
    bad = BadImages()
    batches = train(split, tokenizer, bad_images=bad, **settings)
    usable = np.ones(2 * images, bool)
    for step, batch in enumerate(batches):
        ids = order.batch_ids(step, seed=3, size=2 * images, batch_size=size)
        for row, pair in enumerate(ids):
            if pair // 2 in (7, 11):
                tried = order.replacement_ids(
                    step, row, seed=3, batch=ids, usable=usable
                )
                pair = next(i for i in tried if i // 2 not in (7, 11))
            assert batch["pair"][row] == pair
        assert len(set(batch["pair"])) == size
        assert same([batch], [oracle(split, tokenizer, batch["pair"])])
    assert [Path(b.path).name for b in bad.entries] == ["11.jpg", "7.jpg"]
    assert "No such file" in bad.entries[0].reason
    assert "Truncated" in bad.entries[1].reason
    # Replacements are the same on any number of processes, from any step on.
    for processes in (2, 4):
        share = {**settings, "start_step": 1, "process_count": processes}
        parts = [
            train(split, tokenizer, process_index=p, **share) for p in range(processes)
        ]
        assert same(joined(parts), batches[1:])


def test_replacements_are_those_of_a_batch_made_by_one_thread(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = write_split(tmp_path, images=100, broken=tuple(range(0, 100, 9)))

    def batches() -> Batches:
        bad = BadImages()
        bad.see(*map(str, range(10_000)))  # few of so many are unreadable
        return train(split, tokenizer, batch_size=40, stop_step=4, bad_images=bad)

    monkeypatch.setattr(prefetch, "UNIT", 40)
    whole = batches()
    monkeypatch.setattr(prefetch, "UNIT", 7)
    assert same(batches(), whole)


def test_more_than_one_percent_unreadable_is_an_error(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    split = write_split(tmp_path, images=100, broken=tuple(range(3, 13)))
    with pytest.raises(TooManyBadImagesError, match=r"10 unreadable .* 100 in al") as e:
        train(split, tokenizer, batch_size=40)
    assert "tensorflow" not in str(e.value).lower()


def test_the_limit_counts_each_picture_once() -> None:
    bad = BadImages()
    for i in range(1500):
        bad.see(f"{i}")
    for i in range(15):
        bad.add(f"{i}", "broken\tfor\n ever", images=20_000)
        bad.add(f"{i}", "again", images=20_000)
    assert len(bad.entries) == 15
    assert bad.entries[0] == BadImage("0", "broken for ever")
    with pytest.raises(
        TooManyBadImagesError, match="16 unreadable pictures among 1500"
    ):
        bad.add("15", "broken", images=20_000)
    fresh = BadImages()
    fresh.see("0")
    for i in range(9):
        fresh.add(f"{i}", "a few in the first batch are not 1 %", images=20_000)
    assert fresh.seen == 1
    with pytest.raises(TooManyBadImagesError, match="10 unreadable pictures among 1 "):
        fresh.add("9", "broken", images=20_000)


@pytest.mark.parametrize("unit", [3, prefetch.UNIT])
def test_gallery_batches_hold_every_picture_once(
    split: Split, tokenizer: Tokenizer, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "UNIT", unit)
    for processes, size in ((1, 4), (2, 4), (4, 8), (1, 50), (2, 6)):
        parts = [
            list(
                loader.gallery_batches(
                    split,
                    image_size=SIZE,
                    batch_size=size,
                    process_index=p,
                    process_count=processes,
                )
            )
            for p in range(processes)
        ]
        assert {len(part) for part in parts} == {-(-14 // size)}
        valid = [_valid_rows(b) for step in zip(*parts, strict=True) for b in step]
        ids = np.concatenate([b["image_id"] for b in valid])
        assert ids.tolist() == list(range(14))
        wanted = oracle(split, tokenizer, 2 * np.arange(14))
        assert np.array_equal(
            np.concatenate([b["image"] for b in valid]), wanted["image"]
        )
        person = np.concatenate([b["person"] for b in valid])
        assert np.array_equal(person, wanted["person"] + 100)
        for batch in (b for part in parts for b in part):
            rest = ~batch["valid"]
            assert batch["image"].shape == (size // processes, *SIZE, 3)
            assert (batch["image_id"][rest] == -1).all()
            assert (batch["person"][rest] == -1).all() and not batch["image"][
                rest
            ].any()


def _valid_rows(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: a[batch["valid"]] for name, a in batch.items()}


def test_query_batches_hold_every_caption_once(
    split: Split, tokenizer: Tokenizer
) -> None:
    parts = [
        list(
            loader.query_batches(
                split,
                tokenizer=tokenizer,
                context_length=LENGTH,
                batch_size=10,
                process_index=p,
                process_count=2,
            )
        )
        for p in range(2)
    ]
    batches = [b for step in zip(*parts, strict=True) for b in step]
    assert len(batches) == 6 and all(b["tokens"].shape == (5, LENGTH) for b in batches)
    joined = {
        name: np.concatenate([_valid_rows(b)[name] for b in batches])
        for name in batches[0]
    }
    assert joined["pair"].tolist() == list(range(28))
    assert np.array_equal(joined["person"], split.pair_persons)
    assert np.array_equal(joined["tokens"], tokenizer.encode(split.captions, LENGTH))
    last = batches[-1]
    assert last["pair"].tolist() == [25, 26, 27, -1, -1]
    assert last["valid"].tolist() == [True] * 3 + [False] * 2
    assert not last["tokens"][3:].any() and last["person"][3:].tolist() == [-1] * 2


def test_an_unreadable_picture_ends_an_evaluation(tmp_path: Path) -> None:
    split = write_split(tmp_path, broken=(9,))
    batches = loader.gallery_batches(split, image_size=SIZE, batch_size=4)
    assert [next(batches)["image_id"][0] for _ in range(2)] == [0, 4]
    with pytest.raises(ImageError, match=r"9\.jpg: .*Truncated.*; an evaluation"):
        next(batches)
    Path(split.images[2].path).unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.jpg"):
        list(loader.gallery_batches(split, image_size=SIZE, batch_size=4))


@pytest.mark.parametrize("cache", loader.CACHES)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_each_picture_is_read_by_one_process_only(
    split: Split, tokenizer: Tokenizer, processes: int, cache: str, tmp_path: Path
) -> None:
    """A process reads only its rows of a batch; a gallery's pictures are read once."""
    batches = [order.batch_ids(s, seed=3, size=28, batch_size=8) for s in range(9)]
    share = 8 // processes
    galleries = []
    for p in range(processes):
        source = _Memory(split)
        counted = Split("train", split.images, split.pairs, source)
        rows = {"process_index": p, "process_count": processes}
        # A folder for each process: otherwise the later ones would find all pictures.
        settings = {"cache": cache, "cache_dir": str(tmp_path / f"{p}"), "stop_step": 9}
        train(counted, tokenizer, **settings, **rows)
        own = np.concatenate([ids[p * share : (p + 1) * share] for ids in batches]) // 2
        if cache == "none":
            assert sorted(source.asked) == sorted(own)
        else:
            assert set(source.asked) == set(own)
        source.asked.clear()
        list(loader.gallery_batches(counted, image_size=SIZE, batch_size=8, **rows))
        galleries.append(source.asked)
    assert sorted(i for gallery in galleries for i in gallery) == list(range(14))
    assert max(map(len, galleries)) <= 2 * share


class _Memory:
    """An image source that holds the files' bytes, as TFDS shards do."""

    def __init__(self, split: Split) -> None:
        self._files = [Path(image.path).read_bytes() for image in split.images]
        self.asked: list[int] = []

    def read(self, index: int) -> bytes:
        self.asked.append(index)
        return self._files[index]


def test_a_source_gives_the_same_batches_as_files(
    split: Split, tokenizer: Tokenizer
) -> None:
    nowhere = tuple(Picture(i.file, "tfds/" + i.file, i.person) for i in split.images)
    stored = Split("train", nowhere, split.pairs, _Memory(split))
    assert same(train(stored, tokenizer), train(split, tokenizer))


def test_settings_that_do_not_fit_are_refused_at_once(
    split: Split, tokenizer: Tokenizer
) -> None:
    for changes, message in (
        ({"batch_size": 29}, "28 pairs, fewer than the batch size 29"),
        ({"sampler": "random"}, "sampler='random' is not .*: shuffle, identity"),
        ({"process_count": 3}, r"8 does not divide over 3 .*: .* are 6 and 9"),
        ({"process_count": 16}, r"8 does not divide over 16 .*: .* are 16 and 32"),
        ({"process_index": 2, "process_count": 2}, "process 2 of 2: no such process"),
        (
            {"sampler": "identity", "per_identity": 3},
            "not a positive multiple of the 3",
        ),
        ({"cache": "ram"}, "cache='ram'"),
    ):
        with pytest.raises(ValueError, match=message):
            train(split, tokenizer, **changes)


def test_leaving_early_ends_the_work(split: Split, tokenizer: Tokenizer) -> None:
    batches = loader.train_batches(
        Material.of(split, tokenizer=tokenizer, image_size=SIZE, context_length=LENGTH),
        batch_size=8,
        seed=0,
        start_step=0,
        stop_step=10**9,
        bad_images=BadImages(),
    )
    assert isinstance(batches, Iterator)
    next(batches)
    batches.close()


def drafts(rows: int, *, broken: dict[int, int] | None = None):
    """Begin batches whose rows are numbered; row `broken[step]` cannot be made."""

    def begin(step: int) -> prefetch.Draft:
        x = np.full(rows, -1)

        def fill(part: slice) -> None:
            row = (broken or {}).get(step, -1)
            if part.start <= row < part.stop:
                raise KeyError(f"row {row} of step {step}")
            assert (x[part] == -1).all()
            x[part] = step * rows + np.arange(rows)[part]

        return prefetch.Draft(fill, lambda: {"x": x})

    return begin


@pytest.mark.parametrize("rows", [3, 32, 33, 1000])
def test_steps_come_in_order_whole_and_fail_in_order(rows: int) -> None:
    batches = prefetch.map_steps(
        drafts(rows, broken={7: rows - 1}), start=2, stop=50, rows=rows, row_bytes=1
    )
    got = []
    with pytest.raises(KeyError, match=f"row {rows - 1} of step 7"):
        for batch in batches:
            got.append(batch["x"])
    assert np.array_equal(got, np.arange(2 * rows, 7 * rows).reshape(5, rows))


def test_a_step_that_cannot_begin_fails_in_its_turn() -> None:
    def begin(step: int) -> prefetch.Draft:
        if step == 3:
            raise KeyError("three")
        return drafts(64)(step)

    batches = prefetch.map_steps(begin, start=0, stop=9, rows=64, row_bytes=1)
    assert [next(batches)["x"][0] for _ in range(3)] == [0, 64, 128]
    with pytest.raises(KeyError, match="three"):
        next(batches)


def test_one_large_batch_is_made_by_many_threads() -> None:
    """Two units of one batch wait for each other, which one thread could not."""
    both = threading.Barrier(2, timeout=30)

    def begin(step: int) -> prefetch.Draft:
        return prefetch.Draft(lambda part: both.wait() and None, dict)

    rows = 2 * prefetch.UNIT
    batches = prefetch.map_steps(begin, start=0, stop=1, rows=rows, row_bytes=1)
    assert list(batches) == [{}]


@pytest.mark.parametrize("row_bytes", [1, 1 << 23])
def test_what_is_made_ahead_is_bounded_in_rows(row_bytes: int) -> None:
    made: list[tuple[int, int]] = []
    step_rows = 4 * prefetch.UNIT

    def begin(step: int) -> prefetch.Draft:
        return prefetch.Draft(lambda part: made.append((step, part.start)), dict)

    batches = prefetch.map_steps(
        begin, start=0, stop=10**6, rows=step_rows, row_bytes=row_bytes
    )
    next(batches)
    unit_bytes = prefetch.UNIT * row_bytes
    ahead = min(4 + 2 * prefetch.cores(), prefetch.AHEAD_BYTES // unit_bytes)
    deadline = time.monotonic() + 30
    while len(made) < 4 + ahead and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 4 + ahead
    batches.close()


def test_tensorflow_is_hidden_from_accelerators() -> None:
    tf = prefetch.tensorflow()
    assert {d.device_type for d in tf.config.get_visible_devices()} == {"CPU"}


def test_importing_the_loader_imports_no_framework() -> None:
    code = (
        "import sys; import data_pipeline.loader, data_pipeline.tokenizer; "
        "heavy = {'jax', 'flax', 'torch', 'tensorflow', 'transformers', 'fmfa_jax'}; "
        "sys.exit(f'imported: {heavy & set(sys.modules)}' "
        "if heavy & set(sys.modules) else 0)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
