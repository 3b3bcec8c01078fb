# SPDX-License-Identifier: Apache-2.0
"""Export parameters to PyTorch: the official names, or a Hugging Face folder."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from fmfa_jax.files import replacing
from fmfa_jax.models import ModelConfig
from fmfa_jax.weights.convert import IMAGE_POSITION
from fmfa_jax.weights.hugging_face import write_folder_config
from fmfa_jax.weights.native import write_safetensors
from fmfa_jax.weights.positions import square_grid
from fmfa_jax.weights.rules import HUGGING_FACE, OFFICIAL, SELECTION_HEADS, Table
from fmfa_jax.weights.tensors import WeightsError
from fmfa_jax.weights.tokenizer_files import write_tokenizer

# FMFA uses a fixed scale of 1 / 0.02, where CLIP learns one.
LOGIT_SCALE = math.log(50.0)


def rename(table: Table, flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """View our parameters under the names and in the layouts of a table.

    Raises:
        KeyError: The table has no name for one of them.
    """
    rules = table.by_target
    named: dict[str, np.ndarray] = {}
    for path, array in flat.items():
        rule, array = rules[path], np.asarray(array)
        for layer, part in enumerate(array if rule.stacked else array[None]):
            named.update(zip(rule.names(layer), rule.from_ours(part), strict=True))
    return named


def export_official(
    path: str | Path, params: Mapping[str, Any], activation: str = "quick_gelu"
) -> Path:
    """Write a safetensors file with the names of IRRA's, FMFA's and RDE's code.

    That code has QuickGELU; another activation is written as metadata, which we read.

    One line loads it there, given the image size and number of classes of training:

        model.load_state_dict(safetensors.torch.load_file("OUT.safetensors"))
    """
    flat = flatten_dict(params, sep="/")
    renamed = rename(OFFICIAL, flat)
    if (skip := flat.get("tse/image/skip/kernel")) is not None:
        renamed |= uncalled(*skip.shape)
    return write_safetensors(path, renamed, {"format": "pt", "activation": activation})


def uncalled(width: int, wide: int) -> dict[str, np.ndarray]:
    """What RDE's modules hold without use, as new: its code asks for all names.

    Args:
        width: Of the tokens, d.
        wide: Of the embedding, e.
    """
    none, ones = np.zeros(wide, np.float32), np.ones(wide, np.float32)
    norm = {"weight": ones, "bias": none, "running_mean": none, "running_var": ones}
    named = {f"{head}.mlp.bns.1.{n}": norm[n] for head in SELECTION_HEADS for n in norm}
    for head in SELECTION_HEADS:
        for i in (0, 1):
            named[f"{head}.mlp.bns.{i}.num_batches_tracked"] = np.zeros((), np.float32)
    linear = f"{SELECTION_HEADS[0]}.linear"
    weight = np.zeros((wide, width), np.float32)
    return named | {f"{linear}.weight": weight, f"{linear}.bias": none}


def export_hugging_face(
    folder: str | Path,
    params: Mapping[str, Any],
    config: ModelConfig,
    *,
    tokenizer: str = "",
) -> tuple[str, ...]:
    """Write a folder that transformers' CLIPModel and CLIPProcessor open.

    Hugging Face's CLIP only supports square grids, so a rectangular one is stored as
    a square that `interpolate_pos_encoding=True` maps back to ours. Unless images are
    square, pass that flag: `model.get_image_features(pixel_values,
    interpolate_pos_encoding=True)`.

    Args:
        folder: Destination, created if missing.
        params: Nested dictionary of parameters.
        config: Sizes and activation of the model.
        tokenizer: "clip", a folder with vocab.json and merges.txt, or "" for none.

    Returns:
        Our paths without a counterpart there: the heads.

    Raises:
        WeightsError: Patches overlap or leave a margin, which its CLIP cannot do, or
            the tokenizer has another vocabulary.
    """
    height, width = config.image_size
    if config.stride != config.patch or height % config.patch or width % config.patch:
        raise WeightsError(
            "a Hugging Face CLIP needs patches side by side that cover the image; this "
            f"model has patch {config.patch}, stride {config.stride} and images of "
            f"{height} x {width}. Export --to official, or resize the model to another "
            "grid with --image-size and --stride"
        )
    flat = flatten_dict(params, sep="/")
    left_out = tuple(p for p in flat if p not in HUGGING_FACE.by_target)
    towers = {path: flat[path] for path in flat if path not in left_out}
    position = np.asarray(towers[IMAGE_POSITION], np.float32)
    towers[IMAGE_POSITION], side = square_grid(position, config.grid)
    named = rename(HUGGING_FACE, towers)
    named["logit_scale"] = np.asarray(LOGIT_SCALE, np.float32)
    with whole_folder(Path(folder)) as place:
        if tokenizer:
            write_tokenizer(
                place,
                tokenizer,
                vocab_size=config.vocab_size,
                context_length=config.context_length,
            )
        write_safetensors(place / "model.safetensors", named, {"format": "pt"})
        write_folder_config(place, config, side)
    return left_out


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield where to write what shall lie in `folder`: all of it, if it is new."""
    if folder.is_dir():
        yield folder
        return
    with replacing(folder) as draft:
        draft.mkdir()
        yield draft
