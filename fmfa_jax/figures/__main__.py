# SPDX-License-Identifier: Apache-2.0
"""Draw any picture from a run folder.

python -m fmfa_jax.figures curves runs/demo
python -m fmfa_jax.figures rankings runs/demo --count 20
python -m fmfa_jax.figures rankings runs/demo --pair 7 --top 5
python -m fmfa_jax.figures worst runs/demo
python -m fmfa_jax.figures similarities runs/demo
python -m fmfa_jax.figures features runs/demo
python -m fmfa_jax.figures words runs/demo --pair 7
python -m fmfa_jax.figures words runs/demo --query "a man in a red jacket" --image a.jpg

A program, not a part of the room: it stands above evaluation, whose features it draws.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from data_pipeline import images
from data_pipeline.datasets import open_dataset
from data_pipeline.loader import gallery_batches, query_batches
from data_pipeline.records import Split
from data_pipeline.tokenizer import WordTokenizer, open_tokenizer
from fmfa_jax import evaluation, figures, models, weights
from fmfa_jax.evaluation.evaluator import TOP

VIEWS = ("similarity", "attention")
"""In the order of `figures.word_maps`."""


@dataclass(frozen=True)
class Run:
    """A run folder, opened piece by piece as a picture needs it."""

    folder: Path
    root: str | None
    tokenizer_name: str | None
    split_name: str

    @cached_property
    def config(self) -> dict[str, Any]:
        """Dotted key -> value, as training wrote it."""
        path = self.folder / "config.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"no config.json in {self.folder}: wanted the folder of a run, as "
                "main.py's --workdir names it"
            )
        return json.loads(path.read_text(encoding="utf-8"))

    @cached_property
    def split(self) -> Split:
        """The split that is drawn, of the run's data set."""
        options = {
            key.removeprefix("data.options."): value
            for key, value in self.config.items()
            if key.startswith("data.options.")
        }
        root = self.root or self.config["data.root"]
        data = open_dataset(self.config["data.name"], root, **options)
        return data.evaluation_split(self.split_name)

    @cached_property
    def tokenizer(self) -> WordTokenizer:
        """Of the captions."""
        return open_tokenizer(self.tokenizer_name or self.config["data.tokenizer"])

    @cached_property
    def model(self) -> models.Retriever:
        """The best weights of the run, or the last where there are no best."""
        return weights.load_model(self.folder)

    def embed(self) -> evaluation.Embeddings:
        """Features of the split."""
        size = self.config["eval.batch_size"]
        config = self.model.config
        return evaluation.embed(
            self.model.encode_image,
            self.model.encode_text,
            gallery_batches(self.split, image_size=config.image_size, batch_size=size),
            query_batches(
                self.split,
                tokenizer=self.tokenizer,
                context_length=config.context_length,
                batch_size=size,
            ),
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fmfa_jax.figures", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "curves": "losses, learning rate, R1 and mAP over the epochs",
        "rankings": "captions with their nearest pictures, right and wrong marked",
        "worst": "the captions whose person came last",
        "similarities": "histograms of matching and of other pairs",
        "features": "a few people's pictures and captions as points in the plane",
        "words": "which patches each word of a caption goes with",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("run", type=Path, help="folder of a run")
        command.add_argument("--out", type=Path, help="default: RUN/figures")
        if name == "curves":
            continue
        command.add_argument("--split", choices=("test", "val"), default="test")
        command.add_argument("--root", help="of the data set, if it was moved")
        command.add_argument("--tokenizer", help="clip or its folder, if it was moved")
        if name == "rankings":
            _add_ranking_arguments(command)
        if name == "words":
            _add_word_arguments(command)
    return parser


def _add_ranking_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--count", type=int, default=8, help="captions")
    command.add_argument(
        "--pair",
        type=int,
        action="append",
        help="only the caption of this pair (may be repeated)",
    )
    command.add_argument("--top", type=_positive, default=TOP, help="nearest pictures")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number above 0, got {text}")
    return int(text)


def _add_word_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--pair", type=int, help="caption and picture of this pair")
    command.add_argument("--query", help="this sentence in place of the pair's")
    command.add_argument("--image", type=Path, help="this file in place of the pair's")
    command.add_argument(
        "--view",
        choices=("both", *VIEWS),
        default="both",
        help="EFA's similarity, or the interaction encoder's attention",
    )
    command.add_argument(
        "--word",
        action="append",
        help="draw this word (may be repeated); default: the strongest eight",
    )


def _draw_features(args: argparse.Namespace, run: Run, folder: Path) -> list[Path]:
    """Draw what needs the features of a whole split."""
    found = run.embed()
    plots = {
        "similarities": figures.write_similarities,
        "features": figures.write_feature_map,
    }
    if args.command in plots:
        path = folder / f"{args.command}.png"
        persons = found.text_person, found.image_person
        return [plots[args.command](path, found.text, found.image, *persons)]
    asked = vars(args)
    top = evaluation.nearest(found.text, found.image, asked.get("top", TOP))
    _, ranks = evaluation.measure(found)
    measured = run.split, top.index, top.similarity, ranks.first
    if asked.get("pair"):
        return figures.write_chosen(folder, *measured, queries=asked["pair"])
    return figures.write_rankings(folder, *measured, count=asked.get("count", 0))


@dataclass(frozen=True)
class Asked:
    """A sentence, a picture, and where they come from."""

    caption: str
    encoded: bytes
    origin: str


def _draw_words(args: argparse.Namespace, run: Run, folder: Path) -> list[Path]:
    """Draw the word maps of one caption and one picture."""
    asked = _asked_for(args, run)
    pixels = images.decode(asked.encoded)
    views, cosine = _look(run, asked.caption, pixels)
    if args.view != "both":
        views = views[VIEWS.index(args.view) :][:1]
    if not views:
        raise ValueError(
            f"--view {args.view}: the model has no interaction encoder; it was trained "
            "without masked words (losses.mlm)"
        )
    name = "words.png" if args.pair is None else f"words_{args.pair:06d}.png"
    path = figures.write_words(
        folder / name,
        pixels,
        views,
        run.model.config,
        note=f"{asked.origin}: cosine of sentence and picture {cosine:.3f}",
        chosen=None if args.word is None else _places(args.word, views[0].words),
    )
    return [path]


def _look(
    run: Run, caption: str, pixels: UInt8[np.ndarray, "H W 3"]
) -> tuple[tuple[figures.WordMaps, ...], float]:
    """The word maps, and how similar the whole sentence and picture are."""
    config = run.model.config
    ids = run.tokenizer.encode([caption], config.context_length)
    small = images.resize(pixels, config.image_size)
    image, text = run.model.forward_tokens(small[None], ids)
    irr = models.bind(config, run.model.params).irr if config.irr_layers else None
    views = figures.word_maps(
        text[0],
        image[0],
        run.tokenizer.words(ids[0]),
        rule=run.config["loss.efa_rule"],
        interaction=irr,
    )
    pair = models.global_image(image)[0], models.global_text(text, jnp.asarray(ids))[0]
    a, b = (np.asarray(x) / np.linalg.norm(x) for x in pair)
    return views, float(a @ b)


def _asked_for(args: argparse.Namespace, run: Run) -> Asked:
    """What the arguments name; what they leave out is the pair's own."""
    if args.pair is None:
        if args.query is None or args.image is None:
            raise ValueError("wanted --pair N, or both --query TEXT and --image FILE")
        return Asked(args.query, args.image.read_bytes(), args.image.name)
    split = run.split
    if not 0 <= args.pair < len(split.pairs):
        raise ValueError(
            f"--pair {args.pair}: split {split.name!r} has the pairs 0 to "
            f"{len(split.pairs) - 1}"
        )
    pair = split.pairs[args.pair]
    caption = pair.caption if args.query is None else args.query
    if args.image is not None:
        return Asked(caption, args.image.read_bytes(), args.image.name)
    file = split.images[pair.image].file
    origin = f"{split.name}, pair {args.pair}, {file}"
    return Asked(caption, split.read(pair.image), origin)


def _places(wanted: Sequence[str], words: Sequence[str]) -> list[int]:
    """Indices of the wanted words, in the sentence's order."""
    lowered = {word.lower() for word in wanted}
    missing = sorted(lowered - set(words))
    if missing:
        raise ValueError(
            f"--word {', '.join(missing)}: not in the caption, whose words are: "
            f"{', '.join(dict.fromkeys(words))}"
        )
    return [place for place, word in enumerate(words) if word in lowered]


def _draw(args: argparse.Namespace) -> list[Path]:
    folder = args.out or args.run / "figures"
    if args.command == "curves":
        metrics = args.run / "metrics.jsonl"
        return [figures.write_curves(metrics, folder / "curves.png")]
    run = Run(args.run, args.root, args.tokenizer, args.split)
    if args.command == "words":
        return _draw_words(args, run, folder)
    return _draw_features(args, run, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, or 2 when something cannot be used; the reason is on standard error.
    """
    args = _parser().parse_args(arguments)
    try:
        files = _draw(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for file in files:
        print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
