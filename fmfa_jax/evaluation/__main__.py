# SPDX-License-Identifier: Apache-2.0
"""Measure a run by a protocol, and write its table, CSV and figure.

python -m fmfa_jax.evaluation cross-domain runs/cuhk icfg_pedes:/data rstp_reid:/data
python -m fmfa_jax.evaluation incomplete runs/demo
python -m fmfa_jax.evaluation attributes runs/demo
python -m fmfa_jax.evaluation sentences runs/demo
python -m fmfa_jax.evaluation hubness runs/demo --k 32 --alpha 0.6
python -m fmfa_jax.evaluation rerank runs/demo
python -m fmfa_jax.evaluation msd runs/demo
python -m fmfa_jax.evaluation compare runs/a runs/b runs/c
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.command import Parser, run, say, source, target, told_of
from data_pipeline.copies import own
from data_pipeline.delivery import delivered
from data_pipeline.images import ImageError
from fmfa_jax.evaluation.attributes import WORDS
from fmfa_jax.evaluation.charts import write_chart
from fmfa_jax.evaluation.compare import EVALUATION, compare, protocol_folder
from fmfa_jax.evaluation.incomplete import WAYS
from fmfa_jax.evaluation.protocols import PROTOCOLS, Subject
from fmfa_jax.evaluation.rerank import Reciprocal
from fmfa_jax.evaluation.runs import FILES, Run, open_data, split_to_measure
from fmfa_jax.evaluation.tables import Table
from fmfa_jax.weights import WeightsError, is_hub, located, run_config
from fmfa_jax.weights.arguments import add_model_arguments, model_path, stated

_HELP = {
    "cross-domain": "one model on any data sets, beside what is published",
    "incomplete": "10 to 50 percent of each caption's words hidden",
    "attributes": "captions that speak of each colour, garment, bag, .. apart",
    "sentences": "several sentences as one query",
    "hubness": "pictures that are near to everything step back (NNN)",
    "rerank": "k-reciprocal re-ranking",
    "msd": "mean similarity distribution, UFineBench's measure",
}
assert _HELP.keys() == PROTOCOLS.keys()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one protocol, or compare runs.

    Returns:
        0 for success, 2 for an error, which is printed in one paragraph.
    """
    args = _parser().parse_args(arguments)
    try:
        with delivered(args) as address:
            table, folder = args.run(args)
            _write(table, folder)
            say(table.markdown)
        files = "table.md, table.csv, table.json, figure.png"
        say(f"wrote {files} to {address(folder)}")
    except (WeightsError, ImageError, OSError, ValueError) as error:
        return told_of(args, error)
    return 0


def _write(table: Table, folder: Path) -> None:
    table.write(folder)
    write_chart(table, folder / "figure.png")


def _measure(args: argparse.Namespace) -> tuple[Table, Path]:
    place, told = Path(located(args.path)), stated(args)
    run = Run(place, args.weights, tokenizer_name=args.tokenizer, stated=told)
    if not run.path.exists():
        raise FileNotFoundError(f"no run folder or weight file at {run.path}")
    folder = Path(args.out) if args.out else _own_folder(run, args)
    if not args.data and (is_hub(args.path) or not run_config(run.path)):
        raise ValueError(
            f"{args.path} is no run folder, so nothing says which data it is to be "
            "measured on: name it as NAME:ROOT, as in cuhk_pedes:/data"
        )
    data = [open_data(text) for text in args.data] or [run.data]
    subjects = [Subject(run, each, split_to_measure(each, args.split)) for each in data]
    for subject in subjects:
        split = subject.split
        count = f"{len(split.images)} pictures, {len(split.pairs)} captions"
        say(f"{subject.data.name} {split.name}: {count}", sys.stderr)
    options = args.options(args)
    return PROTOCOLS[args.command].table(subjects, _title(args, run), **options), folder


def _own_folder(run: Run, args: argparse.Namespace) -> Path:
    if is_hub(args.path) or not run_config(run.path):
        raise ValueError(
            f"{args.path} is no run folder: say where to write the table with --out"
        )
    return own(protocol_folder(run, args.command))


def _title(args: argparse.Namespace, run: Run) -> str:
    about = run.about
    file = run.path if run.path.is_dir() else run.file
    what = [f"{args.command}: {args.path if is_hub(args.path) else file}"]
    if "step" in about:
        chosen = f", chosen on {about['chosen_on']}" if "chosen_on" in about else ""
        what.append(f"{run.file.name}, step {about['step']}{chosen}")
    return ", ".join(what)


def _compare(args: argparse.Namespace) -> tuple[Table, Path]:
    runs = [Path(each) for each in args.runs]
    table = compare(runs, table=args.table, which=args.weights)
    folder = Path(args.out) if args.out else own(runs[0] / "eval" / "compare")
    return table, folder


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        module="fmfa_jax.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    made = {name: _protocol(commands, name) for name in PROTOCOLS}
    _incomplete(made["incomplete"])
    _attributes(made["attributes"])
    _hubness(made["hubness"])
    _rerank(made["rerank"])
    text = "tables that runs wrote, side by side; seeds are averaged"
    beside = commands.add_parser("compare", help=text, description=text)
    beside.set_defaults(run=_compare)
    beside.add_argument("runs", nargs="+", type=source, help="run folders")
    tables = (EVALUATION, *PROTOCOLS)
    beside.add_argument("--table", choices=tables, default=EVALUATION)
    _common(beside, "default: the first run's eval/compare/")
    return parser


def _protocol(commands: Any, name: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=_HELP[name], description=_HELP[name])
    command.set_defaults(run=_measure, options=lambda args: {})
    text = "run, weight file, or hf://ORG/NAME"
    command.add_argument("path", type=model_path, metavar="RUN", help=text)
    command.add_argument(
        "data", nargs="*", metavar="NAME:ROOT", help="data sets; default: the run's own"
    )
    command.add_argument(
        "--split", choices=("test", "val"), default="", help="default: test, or val"
    )
    command.add_argument(
        "--tokenizer", type=source, help='"clip" or a folder; default: the run\'s'
    )
    add_model_arguments(command)
    _common(command, "default: the run's eval/PROTOCOL/")
    return command


def _common(command: argparse.ArgumentParser, out: str) -> None:
    command.add_argument("--weights", choices=tuple(FILES), default="best")
    command.add_argument("--out", type=target, metavar="FOLDER", help=out)


def _incomplete(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, default=0, help="which words are hidden")
    command.add_argument(
        "--way", choices=WAYS, default="mask", help="hidden words become masks or go"
    )
    _takes(command, "seed", "way")


def _attributes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--by",
        choices=("auto", "words", "drawn"),
        default="auto",
        help=f"words of the captions ({', '.join(WORDS)}), or the attributes that "
        "people were drawn from; auto: drawn for drawn people",
    )
    _takes(command, "by")


def _hubness(command: argparse.ArgumentParser) -> None:
    command.add_argument("--k", type=int, help="reference sentences for a picture")
    command.add_argument("--alpha", type=float, help="weight of the correction")
    command.add_argument(
        "--bank",
        choices=("train", "test"),
        default="train",
        help="reference sentences; test is transductive",
    )
    _takes(command, "k", "alpha", "bank")


def _rerank(command: argparse.ArgumentParser) -> None:
    command.add_argument("--k1", type=int, default=Reciprocal.k1)
    command.add_argument("--k2", type=int, default=Reciprocal.k2)
    command.add_argument(
        "--lambda", dest="weight", type=float, default=Reciprocal.weight
    )
    command.set_defaults(
        options=lambda args: {"options": Reciprocal(args.k1, args.k2, args.weight)}
    )


def _takes(command: argparse.ArgumentParser, *names: str) -> None:
    """Hand these arguments on to the protocol."""

    def options(args: argparse.Namespace) -> dict[str, Any]:
        return {name: getattr(args, name) for name in names}

    command.set_defaults(options=options)


if __name__ == "__main__":
    run(main)
