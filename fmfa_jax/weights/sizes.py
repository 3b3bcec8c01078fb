# SPDX-License-Identifier: Apache-2.0
"""The sizes of a model that its tensors imply."""

import math
from collections.abc import Mapping
from dataclasses import replace

from fmfa_jax.models import PARTS, ModelConfig
from fmfa_jax.weights.source import HINTS, Source
from fmfa_jax.weights.tensors import WeightsError


def infer_config(
    source: Source,
    *,
    image_size: tuple[int, int] | None = None,
    stride: int | None = None,
    context_length: int | None = None,
    activation: str = "quick_gelu",
    hints: Mapping[str, str] = HINTS,
) -> ModelConfig:
    """Infer a config from the shapes of the tensors.

    Args:
        source: The weight file.
        image_size: See `load.load_params`.
        stride: See `load.load_params`.
        context_length: See `load.load_params`.
        activation: Of the model; shapes do not tell it.
        hints: How the caller spells options.

    Raises:
        WeightsError: A tensor that determines a size is missing, or the image size is
            not stated and the grid is not square.
    """
    if source.stated.config is not None:
        known = replace(source.stated.config, activation=activation)
        return _restated(known, image_size, stride, context_length)
    shapes = _telling_shapes(source)
    patch, _, _, image_width = shapes["image_tower/patch/kernel"]
    if image_size is None:
        rows = shapes["image_tower/position"][0]
        image_size = source.stated.image_size or _square(source, rows, patch, hints)
    depths = {part.blocks: source.depth(part) for part in PARTS if part.blocks}
    switches = {part.switch: source.switch(part) for part in PARTS if part.switch}
    try:
        return ModelConfig(
            image_size=image_size,
            patch=patch,
            stride=patch if stride is None else stride,
            image_width=image_width,
            context_length=context_length or shapes["text_tower/position"][0],
            vocab_size=shapes["text_tower/embedding"][0],
            text_width=shapes["text_tower/embedding"][1],
            embed_dim=shapes["image_tower/projection"][1],
            activation=activation,
            **(depths | switches),
        )
    except ValueError as error:
        raise WeightsError(f"{source.path}: {error}") from error


def _telling_shapes(source: Source) -> dict[str, tuple[int, ...]]:
    """Return our shapes of the tensors that determine a model's sizes."""
    ranks = {
        "image_tower/patch/kernel": 4,
        "image_tower/position": 2,
        "image_tower/projection": 2,
        "text_tower/embedding": 2,
        "text_tower/position": 2,
    }
    shapes = {target: source.shape(target) for target in ranks}
    silent = [t for t, rank in ranks.items() if len(shapes[t] or ()) != rank]
    if silent:
        raise WeightsError(f"no usable {', '.join(silent)} to infer the sizes from")
    return {target: shape for target, shape in shapes.items() if shape is not None}


def _square(
    source: Source, rows: int, patch: int, hints: Mapping[str, str]
) -> tuple[int, int]:
    side = math.isqrt(max(rows - 1, 0))
    if side * side != rows - 1:
        raise WeightsError(
            f"{source.path}: {rows - 1} patches are not a square, so the image size "
            f"is unknown; state it: {hints['image_size']}"
        )
    return side * patch, side * patch


def _restated(
    config: ModelConfig,
    image_size: tuple[int, int] | None,
    stride: int | None,
    context_length: int | None,
) -> ModelConfig:
    return replace(
        config,
        image_size=image_size or config.image_size,
        stride=stride or config.stride,
        context_length=context_length or config.context_length,
    )


def stored_grid(
    source: Source,
    rows: int,
    target: tuple[int, int],
    stated: tuple[int, int] | None,
    hints: Mapping[str, str] = HINTS,
) -> tuple[int, int]:
    """Return the grid of a stored position embedding with `rows` rows.

    One row is the class token's. A grid stated by the caller or the format is
    authoritative. Otherwise a square number of patches is a square grid, and any other
    number must be that of the target grid.
    """
    patches = rows - 1
    known = stated or source.stated.grid
    if known is not None:
        if known[0] * known[1] != patches:
            raise WeightsError(
                f"the stated grid is {known[0]} x {known[1]}, but the file has "
                f"{patches} patch positions"
            )
        return known
    side = math.isqrt(patches)
    square, fits = side * side == patches, target[0] * target[1] == patches
    if square and fits and target != (side, side):
        raise WeightsError(
            f"{patches} patch positions can be {side} x {side} or {target[0]} x "
            f"{target[1]}; state which: {hints['source_grid']}"
        )
    if square:
        return side, side
    if fits:
        return target
    raise WeightsError(
        f"{patches} patch positions are neither a square nor {target[0]} x "
        f"{target[1]}; state their shape: {hints['source_grid']}"
    )
