# SPDX-License-Identifier: Apache-2.0
"""Parameters and ready models from any weight file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from fmfa_jax.models import PARTS, ModelConfig, Retriever, param_shapes
from fmfa_jax.weights.convert import (
    IMAGE_POSITION,
    Problems,
    check_finite,
    check_shapes,
    fill_params,
    match_names,
    merge,
    parts_to_load,
)
from fmfa_jax.weights.report import LoadReport
from fmfa_jax.weights.source import Source, infer_config, open_source, stored_grid
from fmfa_jax.weights.tensors import WeightsError


@dataclass(frozen=True)
class Loaded:
    """The contents of a weight file.

    Attributes:
        params: Nested dictionary of only those parameters that the file provides.
        config: Config of the model that they belong to.
        report: What was used, resized, ignored and left to initialize.
    """

    params: dict[str, Any]
    config: ModelConfig
    report: LoadReport


def load_params(
    path: str | Path,
    config: ModelConfig | None = None,
    *,
    drop_classifier: bool = False,
    image_size: tuple[int, int] | None = None,
    stride: int | None = None,
    context_length: int | None = None,
    source_grid: tuple[int, int] | None = None,
) -> Loaded:
    """Read the parameters of a file or folder as float32 NumPy arrays.

    Args:
        path: OpenAI archive, PyTorch state dict (zip format), safetensors file,
            Hugging Face CLIP folder, or run folder.
        config: Model to fill; None infers it from the tensors.
        drop_classifier: Leave out the identity head of the file.
        image_size: Height and width of the images if `config` is None; by default
            what the file states, or else a square.
        stride: Step between patches if `config` is None; by default the patch.
        context_length: Text positions if `config` is None; by default the file's.
        source_grid: Rows and columns of the file's position embedding, required if
            they are neither square nor as in the model.

    Raises:
        WeightsError: The file cannot be read or does not fit the model; all tensors
            that are missing, surplus or misshapen are listed. Or a parameter is not
            finite.
    """
    source = open_source(path)
    found = Problems()
    parts = parts_to_load(source, config, drop_classifier)
    match = match_names(source, parts, _depths(source, config), found)
    if config is None:
        config = _inferred(source, parts, found, image_size, stride, context_length)
    if config is not None:
        check_shapes(source, match, config, found)
        _check_grid(source, config, source_grid, found)
    found.check(source)
    if config is None:
        raise WeightsError(f"{source.path}: its tensors do not tell the model's sizes")
    params, resized = fill_params(source, match, config, source_grid)
    check_finite(source, params)
    new = sorted(flatten_dict(param_shapes(config), sep="/").keys() - params.keys())
    report = LoadReport(
        source=str(source.path),
        sha256=source.sha256,
        loaded=tuple(params),
        resized=resized,
        ignored=match.ignored,
        newly_initialised=tuple(new),
    )
    return Loaded(params=unflatten_dict(params, sep="/"), config=config, report=report)


def _depths(source: Source, config: ModelConfig | None) -> dict[str, int]:
    """Return the depth of each part: the config's, or else what the names imply."""
    if config is None:
        return {part.name: source.depth(part) for part in PARTS}
    return {part.name: part.depth(config) for part in PARTS}


def _inferred(
    source: Source,
    parts: Mapping[str, str],
    found: Problems,
    image_size: tuple[int, int] | None,
    stride: int | None,
    context_length: int | None,
) -> ModelConfig | None:
    """Infer the config of the parts to load; on failure, report a problem instead."""
    try:
        config = infer_config(
            source,
            image_size=image_size,
            stride=stride,
            context_length=context_length,
        )
    except WeightsError as error:
        found.misfits.append(str(error))
        return None
    left_out = [part.switch for part in PARTS if parts.get(part.name) != ""]
    return replace(config, **dict.fromkeys(left_out, 0))


def _check_grid(
    source: Source,
    config: ModelConfig,
    stated: tuple[int, int] | None,
    found: Problems,
) -> None:
    shape = source.shape(IMAGE_POSITION)
    if shape is None or len(shape) != 2:
        return
    try:
        stored_grid(source, shape[0], config.grid, stated)
    except WeightsError as error:
        found.misfits.append(f"{IMAGE_POSITION}: {error}")


def fill(initial_params: Mapping[str, Any], loaded: Loaded) -> dict[str, Any]:
    """Replace freshly drawn parameters by those of a file.

    Args:
        initial_params: Result of `models.init_params` for the same config.
        loaded: Result of `load_params`; what it lacks keeps its initial value.

    Raises:
        WeightsError: A path or a shape in `loaded` is not the model's.
    """
    drawn = flatten_dict(initial_params, sep="/")
    given = flatten_dict(loaded.params, sep="/")
    return unflatten_dict(merge(drawn, given), sep="/")


def load_model(
    path: str | Path,
    *,
    image_size: tuple[int, int] | None = None,
    stride: int | None = None,
    context_length: int | None = None,
    source_grid: tuple[int, int] | None = None,
    dtype: str = "float32",
) -> Retriever:
    """Load a model that encodes images and captions, from any weight file.

    Args:
        path: See `load_params`.
        image_size: Height and width of the images, such as (384, 128).
        stride: Step between patches; by default the patch.
        context_length: Text positions; by default the file's.
        source_grid: See `load_params`.
        dtype: What the towers compute in, "float32" or "bfloat16".

    Raises:
        WeightsError: See `load_params`.
    """
    loaded = load_params(
        path,
        image_size=image_size,
        stride=stride,
        context_length=context_length,
        source_grid=source_grid,
    )
    return Retriever(replace(loaded.config, dtype=dtype), loaded.params, loaded.report)
