# SPDX-License-Identifier: Apache-2.0
"""Parameters and ready models from any weight file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict, unflatten_dict

from fmfa_jax.models import PARTS, ModelConfig, Retriever, param_shapes
from fmfa_jax.weights.convert import (
    IMAGE_POSITION,
    Match,
    Problems,
    check_finite,
    check_shapes,
    fill_params,
    match_names,
    merge,
    parts_to_load,
)
from fmfa_jax.weights.native import check_digest
from fmfa_jax.weights.positions import LINES
from fmfa_jax.weights.report import LoadReport
from fmfa_jax.weights.sizes import infer_config, stored_grid
from fmfa_jax.weights.source import HINTS, Source, activation_of, open_source
from fmfa_jax.weights.tensors import WeightsError

AUTO = "auto"


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
    text_positions: str = LINES[0],
    activation: str = AUTO,
    key: str = "",
    hints: Mapping[str, str] = HINTS,
) -> Loaded:
    """Read the parameters of a file or folder as float32 NumPy arrays.

    Args:
        path: OpenAI archive, PyTorch state dict (zip format), safetensors file,
            folder of Hugging Face (also sharded) or open_clip, run folder, or
            hf://ORG/NAME for any of them on the hub.
        config: Model to fill; None infers it from the tensors.
        drop_classifier: Leave out the identity head of the file.
        image_size: Height and width of the images if `config` is None; by default
            what the file states, or else a square.
        stride: Step between patches if `config` is None; by default the patch.
        context_length: Text positions if `config` is None; by default the file's.
        source_grid: Rows and columns of the file's position embedding, required if
            they are neither square nor as in the model.
        text_positions: How another number of text positions is made: "stretch" or
            "keep", see `positions.resize_line`.
        activation: "quick_gelu" or "gelu"; "auto" is what the file states, and
            otherwise that of `config`, or "quick_gelu", which the report says.
        key: Which of several models in the file to take.
        hints: How the caller spells these options, for errors and the report.

    Raises:
        WeightsError: The file cannot be read or does not fit the model; tensors that
            are missing, surplus or misshapen are listed. Or a parameter is not finite,
            or the digest of a file of our own does not hold.
    """
    source = open_source(path, key)
    plan = load_plan(
        source,
        config,
        drop_classifier=drop_classifier,
        image_size=image_size,
        stride=stride,
        context_length=context_length,
        source_grid=source_grid,
        activation=activation,
        hints=hints,
    )
    check_digest(source.archive)
    params, resized = fill_params(
        source, plan.match, plan.config, source_grid, text_positions
    )
    check_finite(source, params)
    shapes = flatten_dict(param_shapes(plan.config), sep="/")
    report = LoadReport(
        source=str(source.path),
        sha256=source.sha256,
        family=source.family,
        activation=plan.activation,
        notes=source.notes,
        loaded=tuple(params),
        resized=resized,
        ignored=plan.match.ignored,
        newly_initialised=tuple(sorted(shapes.keys() - params.keys())),
    )
    return Loaded(unflatten_dict(params, sep="/"), plan.config, report)


class Plan(NamedTuple):
    """What would be loaded from a file.

    Attributes:
        match: Which tensor fills which parameter.
        config: The model's.
        activation: The activation, and what states it.
    """

    match: Match
    config: ModelConfig
    activation: str


def load_plan(
    source: Source,
    config: ModelConfig | None = None,
    *,
    drop_classifier: bool = False,
    source_grid: tuple[int, int] | None = None,
    activation: str = AUTO,
    hints: Mapping[str, str] = HINTS,
    **sizes: Any,
) -> Plan:
    """Decide what to load without reading it; arguments as for `load_params`.

    Raises:
        WeightsError: See `load_params`.
    """
    asked = activation
    if config is not None and asked == AUTO and not source.stated.activation:
        asked = AUTO if config.activation == "quick_gelu" else config.activation
    activation, said = activation_of(source, asked, hints)
    found = Problems()
    parts = parts_to_load(source, config, drop_classifier)
    match = match_names(source, parts, _depths(source, config), found)
    if config is None:
        sizes |= {"activation": activation, "hints": hints}
        config = _inferred(source, parts, found, **sizes)
    elif config.activation != activation:
        found.misfits.append(
            f"the activation is {said}, but the model computes {config.activation}"
        )
    if config is not None:
        check_shapes(source, match, config, found, hints)
        _check_grid(source, config, source_grid, found, hints)
    found.check(source)
    if config is None:
        raise WeightsError(f"{source.path}: its tensors do not tell the model's sizes")
    return Plan(match, config, said)


def _depths(source: Source, config: ModelConfig | None) -> dict[str, int]:
    """Return the depth of each part: the config's, or else what the names imply."""
    if config is None:
        return {part.name: source.depth(part) for part in PARTS}
    return {part.name: part.depth(config) for part in PARTS}


def _inferred(
    source: Source,
    parts: Mapping[str, str],
    found: Problems,
    **stated: Any,
) -> ModelConfig | None:
    """Infer the config of the parts to load; on failure, report a problem instead."""
    try:
        config = infer_config(source, **stated)
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
    hints: Mapping[str, str],
) -> None:
    shape = source.shape(IMAGE_POSITION)
    if shape is None or len(shape) != 2:
        return
    try:
        stored_grid(source, shape[0], config.grid, stated, hints)
    except WeightsError as error:
        found.misfits.append(f"{IMAGE_POSITION}: {error}")


def stated_activation(path: str | Path, asked: str = AUTO) -> str:
    """Return the activation of a weight file's model without reading its tensors.

    Args:
        path: See `load_params`.
        asked: See `load_params`, where it is called activation.

    Raises:
        WeightsError: The file cannot be read.
    """
    return activation_of(open_source(path), asked, HINTS)[0]


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
    activation: str = AUTO,
    key: str = "",
    dtype: str = "float32",
) -> Retriever:
    """Load a model that encodes images and captions, from any weight file.

    Args:
        path: See `load_params`.
        image_size: Height and width of the images, such as (384, 128).
        stride: Step between patches; by default the patch.
        context_length: Text positions; by default the file's.
        source_grid: See `load_params`.
        activation: See `load_params`.
        key: See `load_params`.
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
        activation=activation,
        key=key,
    )
    return Retriever(replace(loaded.config, dtype=dtype), loaded.params, loaded.report)
