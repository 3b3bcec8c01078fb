# SPDX-License-Identifier: Apache-2.0
"""Pictures per second and core: this loader versus PIL + torch DataLoader.

    python -m benchmarks.loader [--images 1024] [--rounds 5] [--batch 64]

All contestants read the same generated JPEGs (CUHK-like, about 200 x 500) and captions
and yield batches of 384 x 128 pictures with 77 ids. Each round runs in its own process,
after a pass that does not count; the contestants take turns, and medians are shown.
Pictures per core are pictures divided by the CPU seconds of all of a contestant's
processes and threads: what a loader takes from the machine, which hardly changes when
the machine has other work.

- `usual`: what this field's training scripts do: Pillow, `ToTensor`, `Normalize`, the
  caption's ids (by our fast tokenizer, not the usual one in Python), collate.
- `lean`: the same without `ToTensor` and `Normalize`: uint8 output, like ours. Nobody
  uses it, but it is the limit of what Pillow under a DataLoader can do.
- `ours`: uint8 output; flips, crops and normalisation belong to the device. Captions
  are encoded once per run, which the time includes.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from benchmarks import common
from data_pipeline.bad_images import BadImages
from data_pipeline.records import Pair, Picture, Split

SIZE, LENGTH = (384, 128), 77
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CAPTION = (
    "A man wearing a blue t-shirt, black trousers and white sneakers is walking to the "
    "left with a backpack on his shoulders, number {}."
)


@dataclass(frozen=True)
class Contestant:
    """A loader with its settings.

    Attributes:
        cores: Number of CPU cores it may use.
        rival: Which of ours a DataLoader is compared with; empty for our loader.
        out: What a DataLoader yields: "float" or "uint8" pictures.
        workers: Number of worker processes of a DataLoader.
    """

    cores: int
    rival: str = ""
    out: str = ""
    workers: int = 0


CONTESTANTS = {
    "ours, 1 core": Contestant(1),
    "ours, 2 cores": Contestant(2),
    "usual, 1 core, workers=0": Contestant(1, rival="ours, 1 core", out="float"),
    "usual, 2 cores, workers=2": Contestant(
        2, rival="ours, 2 cores", out="float", workers=2
    ),
    "lean, 1 core, workers=0": Contestant(1, rival="ours, 1 core", out="uint8"),
    "lean, 2 cores, workers=2": Contestant(
        2, rival="ours, 2 cores", out="uint8", workers=2
    ),
}


def write_pictures(folder: Path, count: int) -> None:
    """Write JPEGs with natural-looking structure, about 15 to 40 kB each."""
    draw = np.random.default_rng(0)
    for i in range(count):
        width = int(draw.integers(120, 280))
        height = int(width * draw.uniform(2.2, 2.8))
        coarse = draw.integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(smooth) + draw.normal(0, 5, (height, width, 3))
        pixels = np.clip(noisy, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:05}.jpg", quality=88)


def read_split(folder: Path) -> Split:
    """Return the pictures of a folder, each of a person of its own."""
    paths = sorted(folder.glob("*.jpg"))
    pictures = [Picture(path.name, str(path), i) for i, path in enumerate(paths)]
    pairs = [Pair(i, CAPTION.format(i)) for i in range(len(paths))]
    return Split("train", tuple(pictures), tuple(pairs))


def our_pass(split: Split, batch: int) -> Callable[[], int]:
    """Return a function that loads every picture once and counts them."""
    # Imported here: the check of a card has no tokenizer, and only draws pictures.
    from data_pipeline.loader import Material, train_batches
    from data_pipeline.tokenizer import open_tokenizer

    tokenizer = open_tokenizer("clip")

    def run() -> int:
        """Read the batches; return how many rows they had."""
        material = Material.of(
            split, tokenizer=tokenizer, image_size=SIZE, context_length=LENGTH
        )
        batches = train_batches(
            material,
            batch_size=batch,
            seed=0,
            start_step=0,
            stop_step=len(split.pairs) // batch,
            bad_images=BadImages(),
        )
        return sum(len(each["image"]) for each in batches)

    return run


def peer_pass(split: Split, batch: int, out: str, workers: int) -> Callable[[], int]:
    """Return a function that does the same through a torch DataLoader."""
    import torch

    from data_pipeline.tokenizer import open_tokenizer

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


def measure(name: str, split: Split, batch: int) -> dict[str, float]:
    """Return wall and CPU seconds per picture of a pass, after a pass to warm up."""
    what = CONTESTANTS[name]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: what.cores])
    if what.rival:
        run = peer_pass(split, batch, what.out, what.workers)
    else:
        run = our_pass(split, batch)
    run()
    wall, cpu = time.perf_counter(), cpu_seconds(os.getpid())
    count = run()
    wall, cpu = time.perf_counter() - wall, cpu_seconds(os.getpid()) - cpu
    return {"wall": wall / count, "cpu": cpu / count}


def cpu_seconds(process: int) -> float:
    """Return the CPU seconds of a process, its threads and its living children."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return ticks / os.sysconf("SC_CLK_TCK") + sum(cpu_seconds(int(c)) for c in children)


def report(found: dict[str, dict[str, float]], note: str) -> None:
    """Print the table; the ratios are of pictures per core."""
    rows = []
    for name, taken in found.items():
        rival = found.get(CONTESTANTS[name].rival)
        ratio = f"{taken['cpu'] / rival['cpu']:.2f}x" if rival else ""
        rows.append(
            (name, f"{1 / taken['wall']:.0f}", f"{1 / taken['cpu']:.0f}", ratio)
        )
    header = (
        "",
        "pictures/s",
        "pictures/s per core",
        "ours on equal cores is faster by",
    )
    jpeg = f"libjpeg-turbo {features.version('libjpeg_turbo')}"
    common.show("Loader", header, rows, notes=[note, jpeg])


def main() -> None:
    """Generate the pictures, measure and print the table."""
    parser = common.parser(__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="of pictures, for --only")
    parser.add_argument("--only", choices=CONTESTANTS, help="one contestant, as JSON")
    options = parser.parse_args()
    if options.only:
        split = read_split(options.folder)
        common.answer(measure(options.only, split, options.batch))
        return
    with tempfile.TemporaryDirectory() as name:
        options.folder = Path(name)
        write_pictures(options.folder, options.images)
        sizes = [path.stat().st_size for path in options.folder.iterdir()]
        flags = common.flags(options, "batch", "folder")
        found = common.children(
            "benchmarks.loader", CONTESTANTS, *flags, repeats=options.rounds
        )
    report(
        found,
        f"{options.images} JPEGs of {statistics.mean(sizes) / 1e3:.0f} kB, batch"
        f" {options.batch}, medians of {options.rounds} rounds.",
    )


if __name__ == "__main__":
    main()
