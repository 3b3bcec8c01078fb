# SPDX-License-Identifier: Apache-2.0
"""Draws a synthetic population: `python -m data_pipeline.synthetic OUT --seed 1`."""

import argparse
import json
import sys
import time

from data_pipeline.synthetic import population
from data_pipeline.synthetic.scene import STYLES
from data_pipeline.synthetic.sheet import write_sheet


def main(arguments: list[str] | None = None) -> int:
    """Reads the flags, writes the population, says what was written and how fast."""
    flags = _parser().parse_args(arguments)
    start = time.perf_counter()
    try:
        out = population.write_population(
            flags.out,
            identities=flags.identities,
            images_per_identity=flags.images_per_identity,
            seed=flags.seed,
            style=flags.style,
            val_identities=flags.val_identities,
            test_identities=flags.test_identities,
            image_size=(flags.image_size[0], flags.image_size[1]),
            workers=flags.workers,
        )
    except (ValueError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    seconds = time.perf_counter() - start
    record = out / "CUHK-PEDES" / "reid_raw.json"
    images = len(json.loads(record.read_text(encoding="utf-8")))
    print(
        f"{images} images in {out} ({seconds:.1f} s, {images / seconds:.0f} images/s)"
    )
    if flags.sheet:
        print(f"contact sheet: {write_sheet(out, flags.sheet)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.synthetic")
    parser.description = "Draws people and writes a data set in CUHK-PEDES's layout."
    parser.add_argument("out", help="folder to write; must be absent or empty")
    add = parser.add_argument
    add("--identities", type=int, default=400, help="people to train on")
    add("--images-per-identity", type=int, default=4)
    add("--seed", type=int, default=0, help="other seeds modulo 64: other people")
    add("--style", choices=[*STYLES, "both"], default="studio")
    add("--val-identities", type=int, default=population.VAL_IDENTITIES)
    add("--test-identities", type=int, default=population.TEST_IDENTITIES)
    size = {"type": int, "nargs": 2, "metavar": ("HEIGHT", "WIDTH")}
    add("--image-size", default=population.IMAGE_SIZE, **size)
    add("--workers", type=int, default=1, help="processes; the result is the same")
    add("--sheet", metavar="FILE", help="also write a picture of some of the people")
    return parser


if __name__ == "__main__":
    sys.exit(main())
