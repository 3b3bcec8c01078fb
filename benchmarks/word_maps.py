# SPDX-License-Identifier: Apache-2.0
r"""Whether word maps find what words name: the views of `figures words`, and others.

    python -m benchmarks.word_maps runs/demo
    python -m benchmarks.word_maps runs/demo --captions 400 --only contribution

Of drawn people it is known where each garment and thing is
(`data_pipeline/synthetic/masks.py`). For each word of a test caption that names one of
them, or its colour, "on it" is the share of the word's weight that lies on it; "area"
is that of an even map, "best" that of a map with all its weight on one patch, the
fullest. "peak" counts the words whose largest weight is on a patch that holds at least
half as much of the thing as the fullest. Nothing is random.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from benchmarks import common
from benchmarks.word_map_candidates import ATTENTION, CANDIDATES, Look
from data_pipeline import images
from data_pipeline.records import Split
from data_pipeline.synthetic import masks, photo, population
from fmfa_jax.evaluation.runs import Run
from fmfa_jax.models import ModelConfig
from fmfa_jax.models.towers import patches_of

_LEAST = 0.02
"""Things that fill less of their fullest patch count as hidden."""


@dataclass(frozen=True)
class Item:
    """A caption with its picture, and where what its words name is.

    Attributes:
        look: What a map is made from.
        named: The words that name a thing.
        covered: The share of each patch that a thing fills, by thing.
    """

    look: Look
    named: tuple[masks.Named, ...]
    covered: dict[str, Float[np.ndarray, "p"]]


def main() -> None:
    """Print a table: a row for each candidate."""
    parser = common.parser(__doc__)
    parser.add_argument("run", type=Path, help="run folder, trained on drawn people")
    parser.add_argument("--root", help="folder of the people, if it was moved")
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--only", nargs="*", choices=CANDIDATES, default=[*CANDIDATES])
    options = parser.parse_args()
    run = Run(options.run, root=options.root)
    found = list(items(run, options.captions))
    interacts = run.model.config.irr_layers > 0
    names = [name for name in options.only if interacts or name != ATTENTION]
    rows = {name: measure(name, found) for name in names}
    header = ["map", *next(iter(rows.values()))]
    lines = [[name, *row.values()] for name, row in rows.items()]
    title = f"Word maps, {len(found)} captions"
    notes = [f"run: {options.run.resolve().name}"]
    if names != options.only:
        notes.append(
            f"no {ATTENTION}: it has no interaction encoder (as :repaired has)"
        )
    common.show(title, header, lines, notes=notes)


def measure(name: str, found: list[Item]) -> dict[str, str]:
    """Return a candidate's row."""
    scores = []
    for item in found:
        maps = CANDIDATES[name](item.look)
        for each in item.named:
            covered = item.covered[each.thing]
            if covered.max() > _LEAST:
                scores.append((each.kind, *score(maps[each.place], covered)))
    values = np.array([rest for _, *rest in scores])
    colour = np.array([kind == "colour" for kind, *_ in scores])
    share, area, best, peak = values.mean(axis=0)
    return {
        "on it": f"{share:.3f}",
        "colours": f"{values[colour, 0].mean():.3f}",
        "things": f"{values[~colour, 0].mean():.3f}",
        "area": f"{area:.3f}",
        "best": f"{best:.3f}",
        "x area": f"{share / area:.1f}",
        "peak": f"{100 * peak:.0f}%",
        "words": str(len(values)),
    }


def score(
    weights: Float[np.ndarray, "p"], covered: Float[np.ndarray, "p"]
) -> tuple[float, float, float, bool]:
    """Return share, area, best and peak of one word; see the head of this file.

    Args:
        weights: Of each patch, not negative; an empty map counts as an even one.
        covered: The share of each patch that the thing fills.
    """
    area, best = float(covered.mean()), float(covered.max())
    total = float(weights.sum())
    share = float(weights @ covered) / total if total > 0 else area
    return share, area, best, bool(covered[weights.argmax()] >= best / 2)


def items(run: Run, count: int) -> Iterator[Item]:
    """Yield captions of the test split, evenly spread over it, with all that counts.

    Raises:
        FileNotFoundError, ValueError: The run's people were not drawn, or by other
            code; see `population.recorded_options`.
    """
    split = run.data.evaluation_split("test")
    root = run.root or run.config["data.root"]
    options = population.Options(**population.recorded_options(root))
    people = population.people_of(root)
    places = np.linspace(0, len(split.pairs) - 1, min(count, len(split.pairs)))
    for place in places.round().astype(int).tolist():
        yield _item(run, split, place, options, people)


def _item(
    run: Run,
    split: Split,
    place: int,
    options: population.Options,
    people: Mapping,
) -> Item:
    pair, config = split.pairs[place], run.model.config
    picture = split.images[pair.image]
    person, number = people[picture.person], picture.person - 1
    image = int(Path(picture.file).stem.split("_")[1])
    shot = list(population.shots_of(person, number, options))[image]

    def draw(look: masks.Identity) -> Image.Image:
        """Draw a look in the pose and light of the data set's picture."""
        rng = population.drawing_rng(options.seed, number, image)
        size = options.image_size
        return photo.photograph(look, shot, rng, image_size=size, posed_as=person)

    ids = run.tokenizer.encode([pair.caption], config.context_length)[0]
    words = run.tokenizer.words(ids)
    named = masks.named(person, [word.text for word in words])
    things = {each.thing for each in named}
    seen = {t: coverage(masks.mask_of(t, person, draw), config) for t in sorted(things)}
    pixels = images.resize(images.decode(split.read(pair.image)), config.image_size)
    return Item(Look(run, pixels, ids, words), tuple(named), seen)


def coverage(
    mask: Bool[np.ndarray, "H W"], config: ModelConfig
) -> Float[np.ndarray, "p"]:
    """Return the share of each of the model's patches that a mask fills."""
    height, width = config.image_size
    whole = Image.fromarray(mask.astype(np.float32))
    small = np.asarray(whole.resize((width, height), Image.Resampling.BOX))
    three = np.repeat(small[None, ..., None], 3, axis=3)
    cut = patches_of(jnp.asarray(three), patch=config.patch, stride=config.stride)
    return np.asarray(cut)[0].mean(axis=-1)


if __name__ == "__main__":
    main()
