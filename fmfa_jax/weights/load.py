# SPDX-License-Identifier: Apache-2.0
"""Parameters and ready models from any weight file."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from fmfa_jax.models import (
    ModelConfig,
    bind,
    global_image,
    global_text,
    normalize_images,
    param_shapes,
)
from fmfa_jax.weights.convert import (
    TOWERS,
    Problems,
    check_shapes,
    fill_params,
    match_names,
    merge,
    rooms_to_load,
)
from fmfa_jax.weights.report import LoadReport
from fmfa_jax.weights.source import Source, infer_config, open_source, stored_grid
from fmfa_jax.weights.tensors import WeightsError
from fmfa_jax.weights.trees import flatten, unflatten


@dataclass(frozen=True)
class Loaded:
    """What a file gave.

    Attributes:
        params: nested dictionary with only the parameters that the file filled.
        config: of the model that they belong to.
        report: what was used, resized, ignored and left to be initialised.
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
        path: an OpenAI archive, a PyTorch state dict (zip format), safetensors, a
            Hugging Face CLIP folder, or a run folder of ours.
        config: the model to fill; None: inferred from the tensors.
        drop_classifier: leave the file's identity head out.
        image_size: height and width of the pictures, where `config` is None; by
            default what the file says, or a square.
        stride: between patches, where `config` is None; by default the patch.
        context_length: text positions, where `config` is None; by default the file's.
        source_grid: rows and columns of the file's position embedding, where they
            cannot be told (neither square nor the wanted grid).

    Raises:
        WeightsError: the file cannot be read, or does not give this model; all
            tensors that are missing, surplus or do not fit are listed.
    """
    source = open_source(path)
    found = Problems()
    rooms = rooms_to_load(source, config, drop_classifier)
    match = match_names(source, rooms, _layers(source, config), found)
    if config is None:
        config = _inferred(source, rooms, found, image_size, stride, context_length)
    if config is not None:
        check_shapes(source, match, config, found)
        _check_grid(source, config, source_grid, found)
    found.check(source)
    if config is None:
        raise WeightsError(f"{source.path}: its tensors do not tell the model's sizes")
    params, resized = fill_params(source, match, config, source_grid)
    new = sorted(flatten(param_shapes(config)).keys() - params.keys())
    report = LoadReport(
        source=str(source.path),
        sha256=source.sha256,
        loaded=tuple(params),
        resized=resized,
        ignored=match.ignored,
        newly_initialised=tuple(new),
    )
    return Loaded(params=unflatten(params), config=config, report=report)


def _layers(source: Source, config: ModelConfig | None) -> dict[str, int]:
    """Layers of each room: the config's, or as many as the file's names count."""
    if config is None:
        rooms = ("image_tower", "text_tower", "irr")
        return {"classifier": 0, **{room: source.layers(room) for room in rooms}}
    return {
        "image_tower": config.image_layers,
        "text_tower": config.text_layers,
        "irr": config.irr_layers,
        "classifier": 0,
    }


def _inferred(
    source: Source,
    rooms: Mapping[str, str],
    found: Problems,
    image_size: tuple[int, int] | None,
    stride: int | None,
    context_length: int | None,
) -> ModelConfig | None:
    """The config that the tensors tell; None, and a problem, where they do not."""
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
    return config if rooms.get("classifier") == "" else replace(config, classes=0)


def _check_grid(
    source: Source,
    config: ModelConfig,
    stated: tuple[int, int] | None,
    found: Problems,
) -> None:
    shape = source.shape("image_tower/position")
    if shape is None or len(shape) != 2:
        return
    try:
        stored_grid(source, shape[0], config.grid, stated)
    except WeightsError as error:
        found.misfits.append(f"image_tower/position: {error}")


def fill(initial_params: Mapping[str, Any], loaded: Loaded) -> dict[str, Any]:
    """Lay what a file gave over freshly drawn parameters.

    Args:
        initial_params: `models.init_params` of the same config.
        loaded: from `load_params`; what it lacks keeps its initial value.

    Raises:
        WeightsError: a path or a shape of `loaded` is not the model's.
    """
    return unflatten(merge(flatten(initial_params), flatten(loaded.params)))


class LoadedModel:
    """Two compiled encoders with their parameters.

    Attributes:
        config: sizes of the model.
        params: nested dictionary of jax arrays.
        report: what the file gave.
    """

    def __init__(self, loaded: Loaded):
        self.config = loaded.config
        self.report = loaded.report
        self.params: dict[str, Any] = unflatten(_to_device(flatten(loaded.params)))
        # Without the heads, models of one size share their compiled encoders.
        self._towers = replace(loaded.config, classes=0, irr_layers=0)

    def encode_image(
        self, images: UInt8[Array | np.ndarray, "b h w 3"]
    ) -> Float[Array, "b d"]:
        """Pictures of `config.image_size` -> global features, not normalised.

        Raises:
            ValueError: the pictures have another size.
        """
        return global_image(self._image(images))

    def encode_text(
        self, tokens: Int[Array | np.ndarray, "b l"]
    ) -> Float[Array, "b d"]:
        """Token ids, padded with 0 -> global features, not normalised.

        Raises:
            ValueError: the captions are not `config.context_length` long.
        """
        return global_text(self._text(tokens), jnp.asarray(tokens))

    def forward_tokens(
        self,
        images: UInt8[Array | np.ndarray, "b h w 3"],
        tokens: Int[Array | np.ndarray, "c l"],
    ) -> tuple[Float[Array, "b n d"], Float[Array, "c l d"]]:
        """Pictures and captions -> the tokens of both towers, not normalised."""
        return self._image(images), self._text(tokens)

    def _image(self, images: Array | np.ndarray) -> Array:
        if tuple(images.shape[1:3]) != tuple(self.config.image_size):
            raise ValueError(
                f"pictures of {self.config.image_size} pixels wanted, "
                f"{tuple(images.shape[1:3])} came; resize them, or load the model "
                "with another image_size"
            )
        return _image_tokens(self._towers, self._tower_params(), images)

    def _text(self, tokens: Array | np.ndarray) -> Array:
        if tokens.shape[1] != self.config.context_length:
            raise ValueError(
                f"captions of {self.config.context_length} tokens wanted, "
                f"{tokens.shape[1]} came; pad or cut them, or load the model with "
                "another context_length"
            )
        return _text_tokens(self._towers, self._tower_params(), tokens)

    def _tower_params(self) -> dict[str, Any]:
        return {tower: self.params[tower] for tower in TOWERS}


@functools.partial(jax.jit, static_argnums=0)
def _image_tokens(config: ModelConfig, params: dict[str, Any], images: Array) -> Array:
    return bind(config, params).encode_images(normalize_images(images))


@functools.partial(jax.jit, static_argnums=0)
def _text_tokens(config: ModelConfig, params: dict[str, Any], tokens: Array) -> Array:
    return bind(config, params).encode_texts(tokens)


def _to_device(flat: dict[str, Any]) -> dict[str, Array]:
    """Hand the arrays over; on a CPU the aligned ones are taken without a copy."""
    return {path: jax.device_put(flat[path], may_alias=True) for path in flat}


def load_model(
    path: str | Path,
    *,
    image_size: tuple[int, int] | None = None,
    stride: int | None = None,
    context_length: int | None = None,
    source_grid: tuple[int, int] | None = None,
    dtype: str = "float32",
) -> LoadedModel:
    """Load a model that encodes pictures and captions, from any weight file.

    Args:
        path: see `load_params`.
        image_size: height and width of the pictures, such as (384, 128).
        stride: between patches; by default the patch.
        context_length: text positions; by default the file's.
        source_grid: rows and columns of the file's position embedding, where unclear.
        dtype: what the towers compute in, "float32" or "bfloat16".

    Raises:
        WeightsError: as `load_params`.
    """
    loaded = load_params(
        path,
        image_size=image_size,
        stride=stride,
        context_length=context_length,
        source_grid=source_grid,
    )
    return LoadedModel(replace(loaded, config=replace(loaded.config, dtype=dtype)))
