# SPDX-License-Identifier: Apache-2.0
"""Command line arguments that say about a model what its weights do not state."""

import argparse
from typing import Any

from data_pipeline.command import source
from fmfa_jax.models.config import ACTIVATIONS
from fmfa_jax.weights.hub import is_hub
from fmfa_jax.weights.load import AUTO


def add_model_arguments(command: argparse.ArgumentParser) -> None:
    """Add --image-size, --stride, --source-grid and --activation."""
    unstated = "where the weights do not state it"
    command.add_argument("--image-size", type=pair, metavar="HxW", help=unstated)
    command.add_argument("--stride", type=positive, help="default: the patch size")
    command.add_argument(
        "--source-grid",
        type=pair,
        metavar="RxC",
        help="rows and columns of the file's position embedding",
    )
    command.add_argument("--activation", choices=(AUTO, *ACTIVATIONS), default=AUTO)


def stated(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was said about the model, as arguments of `load_model`."""
    names = ("image_size", "stride", "source_grid", "activation")
    return {name: getattr(args, name) for name in names}


def model_path(text: str) -> str:
    """The type of an argument that names weights: a `source`, or on the Hub."""
    return text if is_hub(text) else source(text)


def pair(text: str) -> tuple[int, int]:
    """Read "384x128" as (384, 128)."""
    height, cross, width = text.partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"wanted two numbers like 384x128, got {text}")
    return int(height), int(width)


def positive(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number above 0, got {text}")
    return int(text)
