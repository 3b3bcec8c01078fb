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
import sys
from collections.abc import Sequence
from typing import Any

from fmfa_jax.weights.archive import read_archive
from fmfa_jax.weights.deploy import export_onnx, export_stablehlo
from fmfa_jax.weights.export import export_hugging_face, export_official
from fmfa_jax.weights.load import Loaded, load_params
from fmfa_jax.weights.native import save_native
from fmfa_jax.weights.source import infer_config, open_source
from fmfa_jax.weights.tensors import WeightsError

_PROGRAMS = {"stablehlo": export_stablehlo, "onnx": export_onnx}


def _pair(text: str) -> tuple[int, int]:
    """Read "384x128" as (384, 128)."""
    height, cross, width = text.partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(
            f"expected two numbers like 384x128, got {text}"
        )
    return int(height), int(width)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fmfa_jax.weights", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("inspect", help="list the contents of a file")
    take = commands.add_parser("import", help="convert any format to ours")
    give = commands.add_parser("export", help="convert any format for other programs")
    for command in (look, take, give):
        command.add_argument("source", help="weight file, CLIP folder or run folder")
        command.add_argument("--image-size", type=_pair, metavar="HxW")
        command.add_argument("--stride", type=int, help="default: the patch size")
        command.add_argument("--context-length", type=int)
    for command in (take, give):
        command.add_argument(
            "--source-grid",
            type=_pair,
            metavar="RxC",
            help="rows and columns of the file's position embedding",
        )
        command.add_argument("--drop-classifier", action="store_true")
        command.add_argument("out", help="file (import, official) or folder to write")
    give.add_argument(
        "--to",
        choices=("official", "hf", "stablehlo", "onnx"),
        required=True,
        help="official: names of the PyTorch code; hf: transformers' CLIP; stablehlo, "
        "onnx: the two towers as programs",
    )
    return parser


def _sizes(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "image_size": args.image_size,
        "stride": args.stride,
        "context_length": args.context_length,
    }


def _load(args: argparse.Namespace) -> Loaded:
    loaded = load_params(
        args.source,
        drop_classifier=args.drop_classifier,
        source_grid=args.source_grid,
        **_sizes(args),
    )
    print(loaded.report)
    print(f"config   {loaded.config}")
    return loaded


def _inspect(args: argparse.Namespace) -> None:
    source = open_source(args.source)
    archive = read_archive(source.path)
    print(f"file     {source.path}\nkind     {archive.kind}, {source.table.name} names")
    print(f"sha256   {source.sha256}")
    for key in sorted(archive.metadata):
        print(f"metadata {key}: {archive.metadata[key]}")
    for name, tensor in archive.tensors.items():
        print(f"tensor   {name}  {tensor.dtype} {tensor.shape}")
    for name in archive.others:
        print(f"other    {name}")
    try:
        print(f"config   {infer_config(source, **_sizes(args))}")
    except WeightsError as error:
        print(f"config   unknown: {error}")


def _import(args: argparse.Namespace) -> None:
    loaded = _load(args)
    origin = {"source": loaded.report.source, "source_sha256": loaded.report.sha256}
    print(f"wrote    {save_native(args.out, loaded.params, loaded.config, origin)}")


def _export(args: argparse.Namespace) -> None:
    loaded = _load(args)
    if args.to == "official":
        print(f"wrote    {export_official(args.out, loaded.params)}")
        return
    if args.to in _PROGRAMS:
        for path in _PROGRAMS[args.to](args.out, loaded.params, loaded.config):
            print(f"wrote    {path}")
        return
    left_out = export_hugging_face(args.out, loaded.params, loaded.config)
    for path in left_out:
        print(f"left out: {path}: a Hugging Face CLIP has no counterpart")
    print(f"wrote    {args.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, or 2 if a file cannot be used; the reason goes to standard error.
    """
    args = _parser().parse_args(arguments)
    command = {"inspect": _inspect, "import": _import, "export": _export}[args.command]
    try:
        command(args)
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
