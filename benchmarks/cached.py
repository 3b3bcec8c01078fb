# SPDX-License-Identifier: Apache-2.0
"""Pictures per second from a cache of decoded ones: this loader versus a DataLoader.

    python -m benchmarks.cached [--images 2048] [--rounds 3] [--batches 64 256 2048]

All contestants read the same 384 x 128 pictures in random order and yield uint8 batches
with 77 ids, in one process on 2 cores; a DataLoader has two workers beside it. Each
round runs in its own process, after as many pictures that do not count; the contestants
take turns, and medians are shown. Pictures per core are pictures divided by the CPU
seconds of all of a contestant's processes and threads.

- `ours, disk`: the file of `data.cache=disk`, filled by an earlier process.
- `ours, memory`: `data.cache=memory`, filled before.
- `DataLoader`: the pixels of the same file, memory-mapped, a picture at a time.
- `DataLoader, gathered`: the same with one indexing operation a batch, which nobody's
  training script does: the limit of what a DataLoader can do.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import common
from benchmarks.loader import LENGTH, SIZE, cpu_seconds, read_split, write_pictures
from data_pipeline.bad_images import BadImages
from data_pipeline.disk_cache import DiskCache
from data_pipeline.loader import Material, train_batches
from data_pipeline.pictures import Pictures
from data_pipeline.records import Split
from data_pipeline.tokenizer import open_tokenizer

OURS, PEERS = ("ours, disk", "ours, memory"), ("DataLoader", "DataLoader, gathered")


def our_counts(split: Split, batch: int, cache: str, folder: Path) -> Iterator[int]:
    """Yield the sizes of endless batches of our loader."""
    material = Material.of(
        split,
        tokenizer=open_tokenizer("clip"),
        image_size=SIZE,
        context_length=LENGTH,
        cache=cache,
        cache_dir=str(folder),
    )
    batches = train_batches(
        material,
        batch_size=batch,
        seed=0,
        start_step=0,
        stop_step=10**7,
        bad_images=BadImages(),
    )
    return (len(each["image"]) for each in batches)


def peer_counts(
    split: Split, batch: int, gathered: bool, folder: Path, workers: int = 2
) -> Iterator[int]:
    """Yield the sizes of endless batches of a torch DataLoader over our file."""
    import torch

    (file,) = folder.glob("*.uint8")
    shape = (len(split.images), *SIZE, 3)
    pixels = np.memmap(
        file, np.uint8, mode="c", offset=4 * len(split.images), shape=shape
    )
    ids = torch.from_numpy(open_tokenizer("clip").encode(split.captions, LENGTH))

    class Pairs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(split.pairs)

        def __getitem__(self, i: int | list[int]) -> dict[str, torch.Tensor]:
            return {"image": torch.from_numpy(pixels[i]), "tokens": ids[i]}

    data = Pairs()
    sampler = torch.utils.data.RandomSampler(data, replacement=True, num_samples=10**7)
    whole = torch.utils.data.BatchSampler(sampler, batch, drop_last=True)
    loader = torch.utils.data.DataLoader(
        data,
        sampler=whole if gathered else sampler,
        batch_size=None if gathered else batch,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    return (len(each["image"]) for each in loader)


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Return wall and CPU seconds per picture."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    split, batch = read_split(options.folder), options.batches[0]
    cache = options.folder / "cache"
    if name in OURS:
        counts = our_counts(split, batch, name.removeprefix("ours, "), cache)
    else:
        counts = peer_counts(split, batch, "gathered" in name, cache)
    _take(counts, max(options.pictures, 2 * len(split.images)))
    wall, cpu = time.perf_counter(), cpu_seconds(os.getpid())
    count = _take(counts, options.pictures)
    wall, cpu = time.perf_counter() - wall, cpu_seconds(os.getpid()) - cpu
    return {"wall": wall / count, "cpu": cpu / count}


def _take(counts: Iterator[int], wanted: int) -> int:
    got = 0
    while got < wanted:
        got += next(counts)
    return got


def fill(folder: Path) -> None:
    """Make the file that all contestants but one read."""
    split = read_split(folder)
    pictures = Pictures(split, SIZE, DiskCache(folder / "cache", split, SIZE))
    for index in range(len(split.images)):
        pictures.read(index)


def report(found: dict[int, dict[str, dict[str, float]]], note: str) -> None:
    """Print the table; a ratio is how much faster ours from the disk cache is."""
    rows = []
    for batch, runs in found.items():
        ours = runs[OURS[0]]
        for name, taken in runs.items():
            ratios = [f"{taken[k] / ours[k]:.2f}x" for k in ("wall", "cpu")]
            speeds = [f"{1 / taken[k]:.0f}" for k in ("wall", "cpu")]
            rows.append(
                (
                    f"{name}, batch {batch}",
                    *(speeds + (ratios if name in PEERS else ["", ""])),
                )
            )
    header = (
        "",
        "pictures/s",
        "pictures/s per core",
        "ours, disk, is faster by",
        "per core by",
    )
    common.show("Loader, from decoded pictures", header, rows, notes=[note])


def main() -> None:
    """Generate and decode the pictures, measure and print the table."""
    parser = common.parser(__doc__)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--pictures", type=int, default=16384, help="timed a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 2048])
    parser.add_argument("--folder", type=Path, help="of pictures, for --only")
    parser.add_argument("--only", choices=OURS + PEERS, help="one contestant, as JSON")
    options = parser.parse_args()
    if options.only:
        common.answer(measure(options.only, options))
        return
    with tempfile.TemporaryDirectory() as name:
        options.folder = Path(name)
        write_pictures(options.folder, options.images)
        fill(options.folder)
        flags = common.flags(options, "folder", "pictures")
        found = {
            batch: common.children(
                "benchmarks.cached",
                OURS + PEERS,
                *flags,
                *("--batches", str(batch)),
                repeats=options.rounds,
            )
            for batch in options.batches
        }
    report(
        found,
        f"{options.images} pictures of {SIZE[0]} x {SIZE[1]}, one process, 2 cores,"
        f" medians of {options.rounds} rounds of {options.pictures} pictures.",
    )


if __name__ == "__main__":
    main()
