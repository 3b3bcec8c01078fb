# SPDX-License-Identifier: Apache-2.0
"""The two towers as programs that run without this project: StableHLO and ONNX.

Each takes what can be sent (uint8 pictures, int32 token ids, any number of them) and
returns float32 global features that are not normalised; preprocessing and parameters
are inside.
"""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, Int, UInt8

from fmfa_jax.models import (
    ModelConfig,
    bind,
    global_image,
    global_text,
    normalize_images,
)
from fmfa_jax.weights.convert import TOWERS
from fmfa_jax.weights.tensors import WeightsError

PLATFORMS = ("cpu", "cuda", "tpu")
MANIFEST = "towers.json"
# Old enough for every ONNX runtime of the last years.
OPSET = 18


@dataclasses.dataclass(frozen=True)
class Tower:
    """One tower as a function of one batch.

    Attributes:
        name: image_tower | text_tower.
        encode: batch -> features [b, d].
        shape: of the batch; its first axis is the free one, b.
        dtype: of the batch.
    """

    name: str
    encode: Callable[[Array], Array]
    shape: str
    dtype: type

    @property
    def batch(self) -> jax.ShapeDtypeStruct:
        """The batch with its first axis left open."""
        return jax.ShapeDtypeStruct(export.symbolic_shape(self.shape), self.dtype)


def export_stablehlo(
    folder: str | Path,
    params: Mapping[str, Any],
    config: ModelConfig,
    *,
    platforms: tuple[str, ...] = PLATFORMS,
) -> tuple[Path, ...]:
    """Write image_tower.stablehlo, text_tower.stablehlo and towers.json.

    `jax.export.deserialize` reads them; JAX promises to do so for six months at least
    after the release that wrote them.

    Args:
        folder: where to; made where missing.
        params: nested dictionary; only the towers take part.
        config: their sizes; exported in float32 whatever dtype it says.
        platforms: what the programs are lowered for.

    Returns:
        The files.
    """
    folder = Path(folder)
    files = []
    for tower in _towers(params, config):
        exported = export.export(jax.jit(tower.encode), platforms=platforms)
        data = exported(tower.batch).serialize()
        files.append(_write(folder / f"{tower.name}.stablehlo", bytes(data)))
    facts = {"platforms": list(platforms), "jax": jax.__version__}
    return *files, _write_manifest(folder, config, facts)


def export_onnx(
    folder: str | Path, params: Mapping[str, Any], config: ModelConfig
) -> tuple[Path, ...]:
    """Write image_tower.onnx, text_tower.onnx and towers.json, through jax2onnx.

    The inputs are named images and tokens, the output is named features. Large
    parameters go into files NAME.onnx.data that must stay beside their graph.

    Returns:
        The files.

    Raises:
        WeightsError: jax2onnx is not installed.
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise WeightsError(
            f"ONNX wants the package jax2onnx, which is not there ({error}): pip "
            "install --no-deps -r requirements-onnx.txt"
        ) from error
    # They warn of each shape that the runtime will find out, and of each example of
    # jax2onnx's own whose packages are not there.
    for name in ("onnx_ir.serde", "jax2onnx.plugins.plugin_system"):
        logging.getLogger(name).setLevel(logging.ERROR)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for tower in _towers(params, config):
        path = folder / f"{tower.name}.onnx"
        jax2onnx.to_onnx(
            tower.encode,
            [tower.batch],
            model_name=tower.name,
            opset=OPSET,
            return_mode="file",
            output_path=path,
            input_names=["images" if tower.dtype == jnp.uint8 else "tokens"],
            output_names=["features"],
        )
        written = sorted(folder.glob(f"{tower.name}.onnx*"))
        for file in written:
            shutil.copymode(path, file)  # parameters come readable by nobody else
        files += written
    facts = {"opset": OPSET, "jax": jax.__version__}
    return *files, _write_manifest(folder, config, facts)


def _towers(params: Mapping[str, Any], config: ModelConfig) -> tuple[Tower, Tower]:
    """Both towers, their parameters bound: they become constants of the programs."""
    config = dataclasses.replace(
        config, classes=0, irr_layers=0, dtype="float32", remat="none"
    )
    model = bind(config, {tower: params[tower] for tower in TOWERS})

    def image(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b d"]:
        return global_image(model.encode_images(normalize_images(images)))

    def text(tokens: Int[Array, "b l"]) -> Float[Array, "b d"]:
        return global_text(model.encode_texts(tokens), tokens)

    height, width = config.image_size
    return (
        Tower("image_tower", image, f"b, {height}, {width}, 3", jnp.uint8),
        Tower("text_tower", text, f"b, {config.context_length}", jnp.int32),
    )


def _write_manifest(folder: Path, config: ModelConfig, facts: dict[str, Any]) -> Path:
    """Write what a caller must know to make the inputs."""
    sizes = {
        "image_size": list(config.image_size),
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "embed_dim": config.embed_dim,
    }
    text = json.dumps(sizes | facts, indent=2) + "\n"
    return _write(folder / MANIFEST, text.encode())


def _write(path: Path, data: bytes) -> Path:
    """Write a file that appears whole under its name, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(data)
    os.replace(unfinished, path)
    return path
