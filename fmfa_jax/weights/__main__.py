# SPDX-License-Identifier: Apache-2.0
"""Inspect weight files and convert between formats.

python -m fmfa_jax.weights inspect ViT-B-16.pt
python -m fmfa_jax.weights import ViT-B-16.pt clip.safetensors --image-size 384x128
python -m fmfa_jax.weights export runs/cuhk --to official fmfa.safetensors
python -m fmfa_jax.weights export runs/cuhk --to hf fmfa-clip/
python -m fmfa_jax.weights export runs/cuhk --to stablehlo fmfa-towers/
python -m fmfa_jax.weights export runs/cuhk --to onnx fmfa-towers/
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.command import Parser, path, run, say, source, told_of
from fmfa_jax.models.config import ACTIVATIONS
from fmfa_jax.weights.arguments import pair
from fmfa_jax.weights.deploy import export_onnx, export_stablehlo
from fmfa_jax.weights.export import export_hugging_face, export_official
from fmfa_jax.weights.inspect import describe
from fmfa_jax.weights.load import AUTO, Loaded, load_params
from fmfa_jax.weights.native import save_native
from fmfa_jax.weights.tensors import WeightsError, shown
from fmfa_jax.weights.tokenizer_files import tokenizer_of

_PROGRAMS = {"stablehlo": export_stablehlo, "onnx": export_onnx}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m fmfa_jax.weights", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("inspect", help="list the contents of a file")
    take = commands.add_parser("import", help="convert any format to ours")
    give = commands.add_parser("export", help="convert any format for other programs")
    for command in (look, take, give):
        command.add_argument(
            "source",
            type=source,
            help="weight file, CLIP folder or run folder",
        )
        command.add_argument("--image-size", type=pair, metavar="HxW")
        command.add_argument("--stride", type=int, help="default: the patch size")
        command.add_argument("--context-length", type=int)
        command.add_argument(
            "--activation",
            choices=(AUTO, *ACTIVATIONS),
            default=AUTO,
            help="of the towers; auto: what the file states, or else quick_gelu",
        )
        command.add_argument(
            "--key",
            default="",
            metavar="NAME",
            help="which of several models in the file, such as state_dict_ema",
        )
    for command in (take, give):
        command.add_argument(
            "--source-grid",
            type=pair,
            metavar="RxC",
            help="rows and columns of the file's position embedding",
        )
        command.add_argument("--drop-classifier", action="store_true")
        command.add_argument(
            "out",
            type=path,
            help="file (import, official) or folder to write",
        )
    give.add_argument(
        "--to",
        choices=("official", "hf", "stablehlo", "onnx"),
        required=True,
        help="official: names of the PyTorch code; hf: transformers' CLIP; stablehlo, "
        "onnx: the two towers as programs",
    )
    give.add_argument(
        "--tokenizer",
        type=source,
        default="",
        help='hf: "clip" or a folder; default: the run\'s, or "clip" if it fits',
    )
    return parser


def _stated(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "activation": args.activation,
        "key": args.key,
        "image_size": args.image_size,
        "stride": args.stride,
        "context_length": args.context_length,
    }


def _load(args: argparse.Namespace) -> Loaded:
    loaded = load_params(
        args.source,
        drop_classifier=args.drop_classifier,
        source_grid=args.source_grid,
        **_stated(args),
    )
    print(loaded.report)
    print(f"config   {loaded.config}")
    return loaded


def _inspect(args: argparse.Namespace) -> None:
    for line in describe(args.source, **_stated(args)):
        print(line)


def _import(args: argparse.Namespace) -> None:
    _check_file(args.out)
    loaded = _load(args)
    origin = {"source": loaded.report.source, "source_sha256": loaded.report.sha256}
    _wrote(save_native(args.out, loaded.params, loaded.config, origin))


def _export(args: argparse.Namespace) -> None:
    if args.to == "official":
        _check_file(args.out)
    elif Path(args.out).is_file():
        raise WeightsError(f"cannot write {args.out}: it is a file; wanted a folder")
    loaded = _load(args)
    if args.to == "official":
        activation = loaded.config.activation
        if activation != "quick_gelu":
            print(f"note: the official code has QuickGELU, this model {activation}")
        _wrote(export_official(args.out, loaded.params, activation))
        return
    if args.to in _PROGRAMS:
        for file in _PROGRAMS[args.to](args.out, loaded.params, loaded.config):
            _wrote(file)
        return
    tokenizer = args.tokenizer or tokenizer_of(args.source, loaded.config.vocab_size)
    left_out = export_hugging_face(
        args.out, loaded.params, loaded.config, tokenizer=tokenizer
    )
    for name in left_out:
        say(f"left out: {name}: a Hugging Face CLIP has no counterpart")
    if loaded.config.tse_width:
        say(
            "note: these are the towers alone: what finds pictures there are the "
            "global features (BGE), not those that token selection (TSE) is part of"
        )
    if not tokenizer:
        print("left out: the tokenizer, which is not known: name it with --tokenizer")
    _wrote(args.out)


def _wrote(file: str | Path) -> None:
    print(f"wrote    {shown(file, 4096)}")


def _check_file(out: str) -> None:
    """Refuse a name that cannot become a file, before anything is read."""
    if Path(out).is_dir():
        raise WeightsError(f"cannot write {out}: it is a folder; wanted a file's name")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, or 2 if a file cannot be used or written; the reason goes to standard error.
    """
    args = _parser().parse_args(arguments)
    command = {"inspect": _inspect, "import": _import, "export": _export}[args.command]
    try:
        command(args)
    except WeightsError as error:
        lines = "\n".join(shown(each, 1000) for each in str(error).split("\n"))
        return told_of(args, WeightsError(lines))
    except OSError as error:
        reads = args.command == "inspect" or error.filename == args.source
        place = f"read {args.source}" if reads else f"write {args.out}"
        reason = f"cannot {place}: {error.strerror or error}"
        return told_of(args, OSError(reason))
    return 0


if __name__ == "__main__":
    run(main)
