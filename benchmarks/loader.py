# SPDX-License-Identifier: Apache-2.0
"""Images per second and core: this loader beside PIL + torch DataLoader.

    python -m benchmarks.loader [--images 1024] [--rounds 5] [--batch 64]

All contestants read the same generated JPEGs (CUHK-like, about 200 x 500) and captions
and give batches of 384 x 128 pictures with 77 ids. They run in alternation, each in a
process of its own, and the table holds medians. Images per core are images divided by
the CPU seconds of all of a contestant's processes and threads, which is what a loader
takes from the machine, and stays true when the machine has other work.

- `usual`: what this field's training scripts do: Pillow, `ToTensor`, `Normalize`, the
  caption's ids (by our fast tokenizer, not by the usual one in Python), collate.
- `lean`: the same without `ToTensor` and `Normalize`: uint8 out, as ours. Nobody's
  pipeline, but the limit of what Pillow under a DataLoader can do.
- `ours`: uint8 out; flips, crops and normalising belong to the device. Captions are
  encoded once per run, which the time includes.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from data_pipeline.bad_images import BadImages
from data_pipeline.loader import train_batches
from data_pipeline.records import Pair, Picture, Split
from data_pipeline.tokenizer import open_tokenizer

SIZE, LENGTH = (384, 128), 77
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CAPTION = (
    "A man wearing a blue t-shirt, black trousers and white sneakers is walking to the "
    "left with a backpack on his shoulders, number {}."
)


@dataclass(frozen=True)
class Contestant:
    """A loader with its settings; one that is `rival` is compared with that of ours."""

    cores: int
    cache: str = "none"
    rival: str = ""
    out: str = ""
    workers: int = 0


CONTESTANTS = {
    "ours, 1 core": Contestant(1),
    "ours, 2 cores": Contestant(2),
    "ours, 2 cores, memory cache, later epochs": Contestant(2, "memory"),
    "usual, 1 core, workers=0": Contestant(1, rival="ours, 1 core", out="float"),
    "usual, 2 cores, workers=2": Contestant(
        2, rival="ours, 2 cores", out="float", workers=2
    ),
    "lean, 1 core, workers=0": Contestant(1, rival="ours, 1 core", out="uint8"),
    "lean, 2 cores, workers=2": Contestant(
        2, rival="ours, 2 cores", out="uint8", workers=2
    ),
}


@dataclass(frozen=True)
class Measurement:
    """One pass over the pictures: seconds on the wall and of all CPU cores."""

    wall: float
    cpu: float


def write_pictures(folder: Path, count: int) -> Split:
    """Write JPEGs with natural-looking structure, about 15 to 40 kB each."""
    draw = np.random.default_rng(0)
    pictures = []
    for i in range(count):
        width = int(draw.integers(120, 280))
        height = int(width * draw.uniform(2.2, 2.8))
        coarse = draw.integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(smooth) + draw.normal(0, 5, (height, width, 3))
        path = folder / f"{i:05}.jpg"
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path, quality=88)
        pictures.append(Picture(path.name, str(path), i))
    pairs = tuple(Pair(i, CAPTION.format(i)) for i in range(count))
    return Split("train", tuple(pictures), pairs)


def our_pass(split: Split, batch: int, cache: str) -> Callable[[], int]:
    """Return what loads every picture once and counts them."""
    tokenizer = open_tokenizer("clip")
    steps = len(split.pairs) // batch

    def passes(count: int) -> Any:
        return train_batches(
            split,
            tokenizer=tokenizer,
            image_size=SIZE,
            context_length=LENGTH,
            batch_size=batch,
            seed=0,
            start_step=0,
            stop_step=count * steps,
            bad_images=BadImages(),
            cache=cache,
        )

    if cache == "none":
        return lambda: sum(len(b["image"]) for b in passes(1))
    endless = passes(10**6)
    return lambda: sum(len(next(endless)["image"]) for _ in range(steps))


def peer_pass(split: Split, batch: int, out: str, workers: int) -> Callable[[], int]:
    """Return what loads every picture once through a torch DataLoader."""
    import torch

    torch.set_num_threads(1)  # as in its workers
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    tokenizer = open_tokenizer("clip")

    class Pairs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(split.pairs)

        def __getitem__(self, i: int) -> dict[str, Any]:
            with Image.open(split.images[split.pairs[i].image].path) as file:
                image = file.convert("RGB").resize(
                    SIZE[::-1], Image.Resampling.BILINEAR
                )
            pixels = torch.from_numpy(np.array(image))
            if out == "float":  # torchvision's ToTensor and Normalize
                pixels = pixels.permute(2, 0, 1).contiguous().float().div_(255)
                pixels = pixels.sub_(mean).div_(std)
            ids = torch.from_numpy(
                tokenizer.encode([split.pairs[i].caption], LENGTH)[0]
            )
            person = split.images[split.pairs[i].image].person
            return {"image": pixels, "tokens": ids, "person": person, "pair": i}

    loader = torch.utils.data.DataLoader(
        Pairs(),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
    )
    return lambda: sum(len(b["image"]) for b in loader)


def contestant(name: str, split: Split, batch: int, pipe: Connection) -> None:
    """Warm up, then measure a pass whenever asked, until told to stop."""
    what = CONTESTANTS[name]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: what.cores])
    if what.rival:
        run = peer_pass(split, batch, what.out, what.workers)
    else:
        run = our_pass(split, batch, what.cache)
    run()
    pipe.send(None)
    while pipe.recv():
        wall, cpu = time.perf_counter(), cpu_seconds(os.getpid())
        count = run()
        wall, cpu = time.perf_counter() - wall, cpu_seconds(os.getpid()) - cpu
        pipe.send(Measurement(wall / count, cpu / count))
    # A DataLoader's workers and tf.data's threads need no orderly end here.
    pipe.close()


def cpu_seconds(process: int) -> float:
    """Return the CPU seconds of a process, its threads and its living children."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return ticks / os.sysconf("SC_CLK_TCK") + sum(cpu_seconds(int(c)) for c in children)


def measure(
    split: Split, names: Sequence[str], batch: int, rounds: int
) -> dict[str, Measurement]:
    """Run the contestants in alternation; return each one's medians per image."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in names:
        pipes[name], end = spawn.Pipe()
        process = spawn.Process(target=contestant, args=(name, split, batch, end))
        process.start()
        end.close()  # so that a contestant's death ends the wait for it
        processes.append(process)
        pipes[name].recv()
    runs: dict[str, list[Measurement]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            pipes[name].send(True)
            runs[name].append(pipes[name].recv())
    for name, process in zip(names, processes, strict=True):
        pipes[name].send(False)
        process.join()
    return {
        name: Measurement(
            statistics.median(m.wall for m in taken),
            statistics.median(m.cpu for m in taken),
        )
        for name, taken in runs.items()
    }


def table(results: dict[str, Measurement]) -> str:
    """Return the results as a Markdown table; the ratios are of images per core."""
    lines = [
        "| loader | images/s | images/s per core | ours on equal cores is faster by |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, taken in results.items():
        rival = results.get(CONTESTANTS[name].rival)
        ratio = f"{taken.cpu / rival.cpu:.2f}x" if rival else ""
        lines.append(
            f"| {name} | {1 / taken.wall:.0f} | {1 / taken.cpu:.0f} | {ratio} |"
        )
    return "\n".join(lines)


def environment() -> str:
    """Return versions and hardware in one line."""
    from importlib.metadata import version

    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    packages = ("pillow", "torch", "tensorflow-cpu", "numpy")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return (
        f"{cpu}, {len(os.sched_getaffinity(0))} cores; Python "
        f"{platform.python_version()}, {versions}, libjpeg-turbo "
        f"{features.version('libjpeg_turbo')}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Generate the pictures, measure, print the table."""
    parser = argparse.ArgumentParser(description="this loader beside torch's")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        split = write_pictures(Path(folder), options.images)
        size = statistics.mean(Path(i.path).stat().st_size for i in split.images)
        results = measure(split, list(CONTESTANTS), options.batch, options.rounds)
    print(environment())
    print(
        f"{options.images} JPEGs of {size / 1e3:.0f} kB, batch {options.batch}, "
        f"medians of {options.rounds} rounds in alternation"
    )
    print(table(results))


if __name__ == "__main__":
    main()
