# SPDX-License-Identifier: Apache-2.0
"""Reading and writing the config files of a Hugging Face CLIP folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmfa_jax.files import write_json
from fmfa_jax.models import IMAGE_MEAN, IMAGE_STD, ModelConfig
from fmfa_jax.models.config import HEAD_WIDTH
from fmfa_jax.models.layers import NORM_EPSILON
from fmfa_jax.weights.tensors import WeightsError

# Our own key in the vision config: the image size that a square grid represents.
IMAGE_SIZE_KEY = "fmfa_image_size"
# Default widths of the towers in transformers.
_WIDTHS = {"vision_config": 768, "text_config": 512}


@dataclass(frozen=True)
class FolderGrids:
    """The grids of a folder.

    Attributes:
        stored: Rows and columns of the position embedding in the file, a square.
        meant: The grid that it represents, if our export wrote the folder.
        image_size: Height and width of the images.
    """

    stored: tuple[int, int]
    meant: tuple[int, int] | None
    image_size: tuple[int, int]


def read_folder_config(path: Path) -> FolderGrids:
    """Check what names and shapes cannot show, and read the grid.

    Raises:
        WeightsError: config.json is missing or damaged, or its CLIP computes something
            different (activation, norms, width of the attention heads).
    """
    if not path.is_file():
        raise WeightsError(
            f"no {path}: Hugging Face weights need the config.json beside them"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        parts = {name: _part(config, name) for name in _WIDTHS}
        problems = [p for name in parts for p in _differences(name, parts[name])]
        if problems:
            listed = "\n".join(problems)
            raise WeightsError(f"{path}: a CLIP that computes differently:\n{listed}")
        return _grids(parts["vision_config"])
    except WeightsError:
        raise
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise WeightsError(f"{path} is not a CLIP config ({error})") from error


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    # Older folders repeat their settings in *_config_dict, which takes precedence.
    return {**(config.get(name) or {}), **(config.get(f"{name}_dict") or {})}


def _differences(name: str, part: Mapping[str, Any]) -> list[str]:
    default_heads = _WIDTHS[name] // HEAD_WIDTH
    heads = part.get("hidden_size", _WIDTHS[name]) // HEAD_WIDTH
    checks = (
        ("hidden_act", part.get("hidden_act", "quick_gelu"), "quick_gelu"),
        ("layer_norm_eps", part.get("layer_norm_eps", NORM_EPSILON), NORM_EPSILON),
        ("num_attention_heads", part.get("num_attention_heads", default_heads), heads),
    )
    return [
        f"  {name}.{key} is {given}, expected {wanted}"
        for key, given, wanted in checks
        if given != wanted
    ]


def _grids(vision: Mapping[str, Any]) -> FolderGrids:
    patch = int(vision.get("patch_size", 32))
    side = int(vision.get("image_size", 224))
    stored = (side // patch, side // patch)
    if IMAGE_SIZE_KEY not in vision:
        return FolderGrids(stored=stored, meant=None, image_size=(side, side))
    height, width = (int(n) for n in vision[IMAGE_SIZE_KEY])
    meant = (height // patch, width // patch)
    return FolderGrids(stored=stored, meant=meant, image_size=(height, width))


def write_folder_config(folder: Path, config: ModelConfig, side: int) -> None:
    """Write config.json and preprocessor_config.json.

    Args:
        folder: Destination.
        config: Sizes of the model.
        side: Rows (and columns) of the square position grid in the weights.
    """
    common = {"hidden_act": "quick_gelu", "layer_norm_eps": NORM_EPSILON}
    text = {
        "hidden_size": config.text_width,
        "intermediate_size": 4 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.text_width // HEAD_WIDTH,
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
        "projection_dim": config.embed_dim,
        "pad_token_id": 0,
        "bos_token_id": config.vocab_size - 2,
        "eos_token_id": config.vocab_size - 1,
    }
    vision = {
        "hidden_size": config.image_width,
        "intermediate_size": 4 * config.image_width,
        "num_hidden_layers": config.image_layers,
        "num_attention_heads": config.image_width // HEAD_WIDTH,
        "image_size": side * config.patch,
        "patch_size": config.patch,
        "projection_dim": config.embed_dim,
        IMAGE_SIZE_KEY: list(config.image_size),
    }
    whole = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        "projection_dim": config.embed_dim,
        "text_config": {"model_type": "clip_text_model", **text, **common},
        "vision_config": {"model_type": "clip_vision_model", **vision, **common},
    }
    height, width = config.image_size
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,
        "do_center_crop": False,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
    }
    write_json(folder / "config.json", whole)
    write_json(folder / "preprocessor_config.json", preprocessing)
