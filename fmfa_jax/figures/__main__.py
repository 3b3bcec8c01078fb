# SPDX-License-Identifier: Apache-2.0
"""Draw any figure from a run folder.

python -m fmfa_jax.figures curves runs/demo
python -m fmfa_jax.figures rankings runs/demo --count 20
python -m fmfa_jax.figures rankings runs/demo --pair 7 --top 5
python -m fmfa_jax.figures worst runs/demo
python -m fmfa_jax.figures similarities runs/demo
python -m fmfa_jax.figures features runs/demo
python -m fmfa_jax.figures words runs/demo --pair 7
python -m fmfa_jax.figures words runs/demo --query "a man in a red jacket" --image a.jpg
python -m fmfa_jax.figures page runs/demo
python -m fmfa_jax.figures page runs/irra runs/rde --out both.html
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from data_pipeline import images
from data_pipeline.command import Parser, run, say, source, target, told_of
from data_pipeline.copies import own
from data_pipeline.delivery import delivered
from data_pipeline.records import Split
from data_pipeline.regular import read_regular
from fmfa_jax import evaluation, figures, models
from fmfa_jax.evaluation.blocks import unit_rows
from fmfa_jax.evaluation.runs import Run
from fmfa_jax.weights.arguments import positive

VIEWS = ("contribution", "similarity", "attention")
"""The view of `figures.contribution_maps`, then those of `figures.word_maps`."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        module="fmfa_jax.figures", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "curves": "losses, learning rate, R1 and mAP by epoch",
        "rankings": "captions with their nearest images, marked right or wrong",
        "worst": "the captions whose person is ranked last",
        "similarities": "histograms of matching and other pairs",
        "features": "images and captions of a few people as points in the plane",
        "words": "which patches each word of a caption relates to",
    }
    page = commands.add_parser("page", help="the report as one HTML page")
    page.add_argument("run", type=source, nargs="+", help="run folders, side by side")
    page.add_argument("--out", type=target, help="default: RUN/report.html")
    for name, text in helps.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("run", type=source, help="run folder")
        command.add_argument("--out", type=target, help="default: RUN/figures")
        if name == "curves":
            continue
        command.add_argument("--split", choices=("test", "val"), default="test")
        command.add_argument(
            "--root", type=source, help="new root of the data set, if it was moved"
        )
        command.add_argument(
            "--tokenizer", type=source, help="clip or a folder, if it was moved"
        )
        if name == "rankings":
            _add_ranking_arguments(command)
        if name == "words":
            _add_word_arguments(command)
    return parser


def _add_ranking_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--count", type=int, default=8, help="number of captions")
    command.add_argument(
        "--pair",
        type=int,
        action="append",
        help="only the caption of this pair (may be repeated)",
    )
    command.add_argument(
        "--top", type=positive, default=evaluation.TOP, help="number of nearest images"
    )


def _add_word_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--pair", type=int, help="caption and image of this pair")
    command.add_argument("--query", help="sentence instead of the pair's")
    command.add_argument("--image", type=source, help="file instead of the pair's")
    command.add_argument(
        "--view",
        choices=(*VIEWS, "all"),
        default=VIEWS[0],
        help="what a word adds to the cosine (the default), EFA's similarity, or the "
        "interaction encoder's attention",
    )
    command.add_argument(
        "--word",
        action="append",
        help="draw this word (may be repeated); default: the eight strongest",
    )


def _draw_features(
    args: argparse.Namespace, run: Run, split: Split, folder: Path
) -> list[Path]:
    """Draw a figure of the features of a whole split."""
    features = run.features(split)
    plots = {
        "similarities": figures.write_similarities,
        "features": figures.write_feature_map,
    }
    if args.command in plots:
        path = folder / f"{args.command}.png"
        return [plots[args.command](path, features)]
    asked = vars(args)
    count = asked.get("top", evaluation.TOP)
    top = evaluation.nearest(features.text, features.image, count)
    _, ranks = evaluation.measure(features)
    retrieved = figures.Retrieved(split, top, ranks.first)
    if asked.get("pair"):
        return figures.draw_rankings(folder, retrieved, queries=asked["pair"])
    return figures.draw_spread(folder, retrieved, count=asked.get("count", 0))


@dataclass(frozen=True)
class Asked:
    """A sentence, an image, and where they are from."""

    caption: str
    encoded: bytes
    origin: str


def _draw_words(args: argparse.Namespace, run: Run, folder: Path) -> list[Path]:
    """Draw the word maps of a caption and an image."""
    asked = _asked_for(args, run)
    pixels = images.decode(asked.encoded)
    views, cosine = _look(run, asked.caption, pixels, args.view)
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
    run: Run, caption: str, pixels: UInt8[np.ndarray, "H W 3"], view: str
) -> tuple[tuple[figures.WordMaps, ...], float]:
    """Return the word maps, and the cosine of the whole sentence and image.

    Only those of the view are computed; there are none that the model cannot have.
    """
    config = run.model.config
    ids = run.tokenizer.encode([caption], config.context_length)
    small = images.resize(pixels, config.image_size)
    image, text = run.model.forward_tokens(small[None], ids)
    words, views = run.tokenizer.words(ids[0]), ()
    if view in (VIEWS[0], "all"):
        params = run.model.params
        views = (figures.contribution_maps(config, params, small, ids[0], words),)
    if view != VIEWS[0]:
        irr = models.bind(config, run.model.params).irr if config.irr_layers else None
        rule = run.config["loss.efa_rule"]
        found = figures.word_maps(text[0], image[0], words, rule=rule, interaction=irr)
        views += found if view == "all" else found[VIEWS.index(view) - 1 :][:1]
    pair = models.global_image(image)[0], models.global_text(text, jnp.asarray(ids))[0]
    a, b = unit_rows(np.stack(pair))
    return views, float(a @ b)


def _asked_for(args: argparse.Namespace, run: Run) -> Asked:
    """Return the sentence and image of the arguments, or else those of the pair."""
    if args.pair is None:
        if args.query is None or args.image is None:
            raise ValueError("expected --pair N, or both --query TEXT and --image FILE")
        return Asked(args.query, read_regular(args.image), Path(args.image).name)
    split = run.data.evaluation_split(args.split)
    if not 0 <= args.pair < len(split.pairs):
        raise ValueError(
            f"--pair {args.pair}: split {split.name!r} has the pairs 0 to "
            f"{len(split.pairs) - 1}"
        )
    pair = split.pairs[args.pair]
    caption = pair.caption if args.query is None else args.query
    if args.image is not None:
        return Asked(caption, read_regular(args.image), Path(args.image).name)
    file = split.images[pair.image].file
    origin = f"{split.name}, pair {args.pair}, {file}"
    return Asked(caption, split.read(pair.image), origin)


def _places(wanted: Sequence[str], words: Sequence[str]) -> list[int]:
    """Return the indices of the wanted words, in order."""
    lowered = {word.lower() for word in wanted}
    missing = sorted(lowered - set(words))
    if missing:
        raise ValueError(
            f"--word {', '.join(missing)}: not in the caption, whose words are: "
            f"{', '.join(dict.fromkeys(words))}"
        )
    return [place for place, word in enumerate(words) if word in lowered]


def _draw(args: argparse.Namespace) -> list[Path]:
    if args.command == "page":
        runs = [Path(each) for each in args.run]
        place = Path(args.out) if args.out else own(runs[0]) / figures.PAGE
        return [figures.write_page(runs, place)]
    args.run = Path(args.run)
    folder = Path(args.out) if args.out else own(args.run / "figures")
    if args.command == "curves":
        metrics = args.run / "metrics.jsonl"
        return [figures.write_curves(metrics, folder / "curves.png")]
    run = Run(args.run, root=args.root, tokenizer_name=args.tokenizer)
    if args.command == "words":
        return _draw_words(args, run, folder)
    split = run.data.evaluation_split(args.split)
    return _draw_features(args, run, split, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, or 2 if something cannot be used; the reason goes to standard error.
    """
    args = _parser().parse_args(arguments)
    try:
        with delivered(args) as address:
            files = _draw(args)
    except (OSError, ValueError) as error:
        return told_of(args, error)
    for file in files:
        say(f"wrote {address(file)}")
    return 0


if __name__ == "__main__":
    run(main)
