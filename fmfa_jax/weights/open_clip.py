# SPDX-License-Identifier: Apache-2.0
"""open_clip_config.json: what names and shapes of open_clip's files cannot show."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmfa_jax.models import IMAGE_MEAN, IMAGE_STD
from fmfa_jax.models.config import HEAD_WIDTH
from fmfa_jax.weights.folders import read_json
from fmfa_jax.weights.tensors import WeightsError, listed, shown

CONFIG = "open_clip_config.json"
# Settings of a tower that change what it computes, and how CLIP has them.
_TOWER = {
    "timm_model_name": None,
    "hf_model_name": None,
    "act_kwargs": None,
    "norm_kwargs": None,
    "ls_init_value": None,
    "no_ln_pre": False,
    "attentional_pool": False,
    "embed_cls": False,
    "no_causal_mask": False,
    "final_ln_after_pool": False,
    "proj_bias": False,
    "mlp_ratio": 4.0,
    "head_width": HEAD_WIDTH,
}
_POOLS = {"vision_cfg": ("tok", None), "text_cfg": ("argmax", None)}
_MOST = 8192


@dataclass(frozen=True)
class OpenClipFacts:
    """What the config says of a file.

    Attributes:
        activation: See `ModelConfig`.
        image_size: Height and width of the images.
        grid: Rows and columns of the position embedding.
        widths: Last axis of our parameters by path, to tell whose config it is.
    """

    activation: str
    image_size: tuple[int, int]
    grid: tuple[int, int]
    widths: Mapping[str, int]


def read_config(path: Path) -> OpenClipFacts:
    """Check that the model is a CLIP of ours, and read its activation and grid.

    Raises:
        WeightsError: The config is damaged, or its model computes something different.
    """
    whole = read_json(path, "an open_clip config")
    try:
        model = whole["model_cfg"]
        parts = {name: model[name] for name in _POOLS}
        problems = [line for name in parts for line in _differences(name, parts[name])]
        problems += _heads(parts["text_cfg"])
        problems += _pixels(whole.get("preprocess_cfg") or {})
        if problems:
            raise WeightsError(
                f"{path}: a CLIP that computes differently:\n{listed(problems)}"
            )
        return _facts(model, parts["vision_cfg"], parts["text_cfg"])
    except WeightsError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{path} is not an open_clip config ({type(error).__name__}: "
            f"{shown(error)})"
        ) from error


def _facts(
    model: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any]
) -> OpenClipFacts:
    """Read what is needed; what is left out has open_clip's defaults."""
    height, width = _size(vision.get("image_size", 224))
    patch = _size(vision.get("patch_size", 16))[0]
    return OpenClipFacts(
        activation="quick_gelu" if model.get("quick_gelu") else "gelu",
        image_size=(height, width),
        grid=(height // patch, width // patch),
        widths={
            "image_tower/position": _count(vision.get("width", 768)),
            "text_tower/position": _count(text.get("width", 512)),
            "image_tower/projection": _count(model["embed_dim"]),
        },
    )


def _differences(name: str, part: Mapping[str, Any]) -> list[str]:
    checks = [(key, part.get(key, wanted), wanted) for key, wanted in _TOWER.items()]
    rows = [
        f"{name}.{key} is {shown(given)}, expected {wanted}"
        for key, given, wanted in checks
        if given != wanted and given is not None and given != {}
    ]
    pool = part.get("pool_type")
    if pool not in _POOLS[name]:
        rows.append(f"{name}.pool_type is {shown(pool)}, expected {_POOLS[name][0]}")
    return rows


def _heads(text: Mapping[str, Any]) -> list[str]:
    width, heads = _count(text.get("width", 512)), _count(text.get("heads", 8))
    if width == HEAD_WIDTH * heads:
        return []
    return [f"text_cfg.heads is {heads}, expected {width // HEAD_WIDTH}"]


def _pixels(preprocess: Mapping[str, Any]) -> list[str]:
    wanted = {"mean": list(IMAGE_MEAN), "std": list(IMAGE_STD)}
    return [
        f"preprocess_cfg.{key} is {shown(preprocess[key])}, expected CLIP's {value}"
        for key, value in wanted.items()
        if preprocess.get(key) is not None and list(preprocess[key]) != value
    ]


def _size(given: Any) -> tuple[int, int]:
    height, width = given if isinstance(given, list) else (given, given)
    return _count(height), _count(width)


def _count(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _MOST:
        raise ValueError(f"wanted a size of 1 to {_MOST}, got {shown(value)}")
    return value
