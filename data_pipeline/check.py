# SPDX-License-Identifier: Apache-2.0
"""Check data sets before hours of training: count them and decode every picture.

    python -m data_pipeline.check ROOT [--name NAME]

Finds the data sets under ROOT, prints the number of people, pictures and captions in
each split beside the published numbers, and lists each missing or unreadable picture.
The exit status is 0 if all pictures can be read (whatever the counts), otherwise 1.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.datasets import AnnotationError, DatasetMissing, folder, open_dataset
from data_pipeline.datasets.layout import Counts, traces
from data_pipeline.datasets.published import LAYOUTS
from data_pipeline.images import ImageError, decode
from data_pipeline.records import PersonDataset, Split
from data_pipeline.synthetic.population import RECORD


@dataclass(frozen=True)
class BadPicture:
    """A picture that cannot be used, and why."""

    split: str
    path: str
    reason: str


def detect(root: str) -> list[str]:
    """Return the names of the data sets found, at least in part, under `root`."""
    names = [name for name, layout in LAYOUTS.items() if traces(layout, root)]
    if (Path(root).expanduser() / folder.CAPTIONS).is_file():
        names.append("folder")
    return names


def counts(split: Split) -> Counts:
    """Return the number of known people, pictures and captions in a split."""
    return Counts(len(split.identities), len(split.images), len(split.pairs))


def table(dataset: PersonDataset) -> str:
    """Return a text table of the counts of each split beside the published ones."""
    published, heading = _published(dataset)
    here = {split.name: counts(split) for split in dataset.splits}
    rows = [("split", "ids", "images", "captions", heading, "")]
    for name in ("train", "val", "test"):
        mine, theirs = here.get(name, Counts(0, 0, 0)), published.get(name)
        if mine.images or theirs:
            rows.append(
                (
                    name,
                    *map(str, _tuple(mine)),
                    _slashed(theirs),
                    _verdict(mine, theirs),
                )
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_row(row, widths) for row in rows)


def bad_pictures(split: Split) -> Iterator[BadPicture]:
    """Decode every picture of the split in threads and yield those that fail."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = pool.map(lambda i: _reason(split, i), range(len(split.images)))
        for image, reason in zip(split.images, reasons, strict=True):
            if reason:
                yield BadPicture(split.name, image.path, reason)


def check(name: str, root: str) -> int:
    """Print the report on one data set and return its number of problems."""
    try:
        dataset = open_dataset(name, root)
    except (AnnotationError, DatasetMissing) as error:
        print(f"{name}: {error}\n")
        return 1
    total = sum(len(split.images) for split in dataset.splits)
    print(f"{name} at {dataset.root}\n{table(dataset)}")
    bad = _print_bad(b for split in dataset.splits for b in bad_pictures(split))
    print(f"{total} pictures: {total - bad} decoded, {bad} missing or unreadable\n")
    return bad


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.check", description=__doc__.split("\n")[0]
    )
    parser.add_argument("root", help="folder with the data sets, or of one of them")
    parser.add_argument("--name", help="check only this data set, e.g. cuhk_pedes")
    flags = parser.parse_args(arguments)
    names = [flags.name] if flags.name else detect(flags.root)
    if not names:
        print(f"no data set under {flags.root!r}. Looked for {_places()}")
        return 1
    try:
        return int(sum([check(name, flags.root) for name in names]) > 0)
    except ValueError as error:
        print(error)
        return 1


def _print_bad(bad: Iterable[BadPicture]) -> int:
    number = 0
    for picture in bad:
        print(f"  {picture.split}  {picture.path}: {picture.reason}")
        number += 1
    return number


def _reason(split: Split, index: int) -> str:
    """Return why picture `index` cannot be used, or an empty string if it can."""
    try:
        decode(split.read(index))
    except FileNotFoundError:
        return "missing"
    except (OSError, ImageError) as error:
        return f"unreadable: {error}"
    return ""


def _published(dataset: PersonDataset) -> tuple[dict[str, Counts], str]:
    """Return the published counts to compare with, and the heading for them."""
    layout = LAYOUTS.get(dataset.name)
    drawn = (Path(dataset.root).parent / RECORD).is_file()
    if layout is None or drawn:
        return {}, "published"
    unverified = "" if layout.verified == "yes" else " (unverified)"
    return dict(layout.published), f"published{unverified}"


def _tuple(size: Counts) -> tuple[int, int, int]:
    return size.ids, size.images, size.captions


def _slashed(size: Counts | None) -> str:
    return "/".join(map(str, _tuple(size))) if size else "-"


def _verdict(mine: Counts, theirs: Counts | None) -> str:
    if theirs is None:
        return ""
    return "equal" if mine == theirs else "DIFFERENT"


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if 1 <= column <= 3 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _places() -> str:
    parts = [f"{y.folder}/{name}" for y in LAYOUTS.values() for name in y.annotations]
    return ", ".join([*parts, folder.CAPTIONS])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
