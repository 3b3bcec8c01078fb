# SPDX-License-Identifier: Apache-2.0
"""Reading and writing the config files of a Hugging Face CLIP folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmfa_jax.files import write_json
from fmfa_jax.models import IMAGE_MEAN, IMAGE_STD, ModelConfig
from fmfa_jax.models.config import ACTIVATIONS, HEAD_WIDTH
from fmfa_jax.models.layers import NORM_EPSILON
from fmfa_jax.weights.folders import read_json
from fmfa_jax.weights.tensors import WeightsError, listed, shown

# Our own key in the vision config: the image size that a square grid represents.
IMAGE_SIZE_KEY = "fmfa_image_size"
# Default widths of the towers in transformers.
_WIDTHS = {"vision_config": 768, "text_config": 512}
# An end token of folders from before 2023, which transformers reads as "the last one".
_LEGACY_END = 2
_MOST_PIXELS = 8192


@dataclass(frozen=True)
class FolderFacts:
    """What the config says of the weights beside it.

    Attributes:
        activation: See `ModelConfig`.
        stored: Rows and columns of the position embedding in the file, a square.
        meant: The grid that it represents, if our export wrote the folder.
        image_size: Height and width of the images.
    """

    activation: str
    stored: tuple[int, int]
    meant: tuple[int, int] | None
    image_size: tuple[int, int]


def read_folder_config(path: Path, vocab_size: int) -> FolderFacts:
    """Check what names and shapes cannot show, and read activation and grid.

    Args:
        path: The config.json.
        vocab_size: Rows of the token embedding in the weights.

    Raises:
        WeightsError: config.json is missing or damaged, or its CLIP computes something
            different (norms, width of the attention heads, place of the text feature).
    """
    if not path.is_file():
        raise WeightsError(
            f"no {path}: Hugging Face weights need the config.json beside them"
        )
    config = read_json(path, "a CLIP config")
    kind = config.get("model_type", "clip")
    if kind != "clip":
        raise WeightsError(
            f"{path}: this is Hugging Face's {shown(kind)}, which is not supported: "
            "only its CLIP is"
        )
    try:
        parts = {name: _part(config, name) for name in _WIDTHS}
        problems = [p for name in parts for p in _differences(name, parts[name])]
        problems += _activations(parts) + _end_token(parts["text_config"], vocab_size)
        problems += _pixels(path.parent / "preprocessor_config.json")
        if problems:
            raise WeightsError(
                f"{path}: a CLIP that computes differently:\n{listed(problems)}"
            )
        return _facts(parts["vision_config"])
    except WeightsError:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise WeightsError(f"{path} is not a CLIP config ({shown(error)})") from error


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    # Older folders repeat their settings in *_config_dict, which takes precedence.
    return {**(config.get(name) or {}), **(config.get(f"{name}_dict") or {})}


def _activation(part: Mapping[str, Any]) -> Any:
    return part.get("hidden_act", "quick_gelu")


def _activations(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Describe activations that are none of ours, or not the same in both towers."""
    given = {name: _activation(part) for name, part in parts.items()}
    rows = [
        f"{name}.hidden_act is {shown(value)}, expected {' or '.join(ACTIVATIONS)}"
        for name, value in given.items()
        if value not in ACTIVATIONS
    ]
    if not rows and len(set(given.values())) > 1:
        rows.append(f"its towers have two activations, expected one: {given}")
    return rows


def _end_token(text: Mapping[str, Any], vocab_size: int) -> list[str]:
    """Describe an end token that is not the last: tokens were added behind it."""
    end = text.get("eos_token_id", vocab_size - 1)
    if end in (vocab_size - 1, _LEGACY_END):
        return []
    return [
        f"text_config.eos_token_id is {shown(end)}, expected the last of {vocab_size} "
        "tokens, since a text's feature is read at its largest token: take off those "
        f"behind it in transformers, model.resize_token_embeddings({shown(end)} + 1)"
    ]


def _pixels(path: Path) -> list[str]:
    """Describe statistics of pictures that are not CLIP's."""
    if not path.is_file():
        return []
    given = read_json(path, "a preprocessor config")
    wanted = {"image_mean": IMAGE_MEAN, "image_std": IMAGE_STD}
    return [
        f"{path.name}: {key} is {shown(given[key])}, expected CLIP's {list(value)}"
        for key, value in wanted.items()
        if given.get(key) is not None and list(given[key]) != list(value)
    ]


def _differences(name: str, part: Mapping[str, Any]) -> list[str]:
    default_heads = _WIDTHS[name] // HEAD_WIDTH
    heads = part.get("hidden_size", _WIDTHS[name]) // HEAD_WIDTH
    checks = (
        ("layer_norm_eps", part.get("layer_norm_eps", NORM_EPSILON), NORM_EPSILON),
        ("num_attention_heads", part.get("num_attention_heads", default_heads), heads),
    )
    return [
        f"{name}.{key} is {shown(given)}, expected {wanted}"
        for key, given, wanted in checks
        if given != wanted
    ]


def _facts(vision: Mapping[str, Any]) -> FolderFacts:
    patch = _pixel_count(vision.get("patch_size", 32))
    side = _pixel_count(vision.get("image_size", 224))
    activation, stored = _activation(vision), (side // patch, side // patch)
    if IMAGE_SIZE_KEY not in vision:
        return FolderFacts(activation, stored, None, (side, side))
    height, width = (_pixel_count(n) for n in vision[IMAGE_SIZE_KEY])
    meant = (height // patch, width // patch)
    if max(meant) != stored[0] or not min(meant):
        raise ValueError(f"{IMAGE_SIZE_KEY} {height} x {width} does not fit its grid")
    return FolderFacts(activation, stored, meant, (height, width))


def _pixel_count(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _MOST_PIXELS:
        raise ValueError(f"wanted 1 to {_MOST_PIXELS} pixels, got {shown(value)}")
    return value


def write_folder_config(folder: Path, config: ModelConfig, side: int) -> None:
    """Write config.json and preprocessor_config.json.

    Args:
        folder: Destination.
        config: Sizes of the model.
        side: Rows (and columns) of the square position grid in the weights.
    """
    common = {"hidden_act": config.activation, "layer_norm_eps": NORM_EPSILON}
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
