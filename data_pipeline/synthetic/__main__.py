# SPDX-License-Identifier: Apache-2.0
"""Draw a synthetic population: `python -m data_pipeline.synthetic OUT --seed 1`."""

import argparse
import json
import time

from data_pipeline.command import Parser, path, run, say, told_of
from data_pipeline.synthetic.population import (
    DATASET,
    OPTIONS,
    STYLES,
    Options,
    write_population,
)
from data_pipeline.synthetic.sheet import write_sheet


def main(arguments: list[str] | None = None) -> int:
    """Write the population, report what was written, and return the exit status."""
    flags = _parser().parse_args(arguments)
    options = {name: getattr(flags, name) for name in OPTIONS}
    options["image_size"] = tuple(flags.image_size)
    start = time.perf_counter()
    try:
        out = write_population(flags.out, workers=flags.workers, **options)
    except (ValueError, OSError) as error:
        return told_of(flags, error)
    seconds = time.perf_counter() - start
    annotation = out / DATASET / "reid_raw.json"
    images = len(json.loads(annotation.read_text(encoding="utf-8")))
    say(f"{images} images in {out} ({seconds:.1f} s, {images / seconds:.0f} images/s)")
    if flags.sheet:
        say(f"contact sheet: {write_sheet(out, flags.sheet)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    text = "Draw people and write a data set in CUHK-PEDES's layout."
    parser = Parser(module="data_pipeline.synthetic", description=text)
    parser.add_argument(
        "out", type=path, help="folder to write; must be absent or empty"
    )
    add = parser.add_argument
    add("--identities", type=int, help="people to train on")
    add("--images-per-identity", type=int)
    add("--seed", type=int, help="seeds that differ modulo 64 draw different people")
    add("--style", choices=STYLES)
    add("--val-identities", type=int)
    add("--test-identities", type=int)
    add("--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    add("--twins", type=float, help="share of people that nearly are another's twin")
    add("--omitted", type=float, help="share of the facts that captions leave out")
    add("--workers", type=int, default=1, help="processes; the result is the same")
    add(
        "--sheet",
        type=path,
        metavar="FILE",
        help="also write a picture of some of the people",
    )
    parser.set_defaults(**{name: getattr(Options, name) for name in OPTIONS})
    return parser


if __name__ == "__main__":
    run(main)
