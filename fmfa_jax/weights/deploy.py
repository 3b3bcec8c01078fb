# SPDX-License-Identifier: Apache-2.0
"""The two towers as standalone programs: StableHLO and ONNX.

Each takes a batch of any size (uint8 images, int32 token ids) and returns float32
global features, not normalized. Preprocessing and parameters are included.
"""

import dataclasses
import functools
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array

from fmfa_jax.files import replacing, write_json
from fmfa_jax.models import (
    ModelConfig,
    image_features,
    params_of,
    text_features,
    without_training_heads,
)
from fmfa_jax.weights.tensors import WeightsError

PLATFORMS = ("cpu", "cuda", "tpu")
MANIFEST = "towers.json"
# Old enough for every recent ONNX runtime.
OPSET = 18


@dataclasses.dataclass(frozen=True)
class Tower:
    """One tower as a function of one batch.

    Attributes:
        name: "image_tower" or "text_tower".
        encode: Maps a batch to features [b, d].
        shape: Symbolic shape of the batch, with a free first axis b.
        dtype: Dtype of the batch.
    """

    name: str
    encode: Callable[[Array], Array]
    shape: str
    dtype: type

    @property
    def batch(self) -> jax.ShapeDtypeStruct:
        """The batch, with a free first axis."""
        return jax.ShapeDtypeStruct(export.symbolic_shape(self.shape), self.dtype)


def export_stablehlo(
    folder: str | Path,
    params: Mapping[str, Any],
    config: ModelConfig,
    *,
    platforms: tuple[str, ...] = PLATFORMS,
) -> tuple[Path, ...]:
    """Write image_tower.stablehlo, text_tower.stablehlo and towers.json.

    `jax.export.deserialize` reads them; JAX guarantees compatibility for at least six
    months after the release that wrote them.

    Args:
        folder: Destination, created if missing.
        params: Nested dictionary, of which what features need is exported.
        config: Sizes of the model; the programs compute in float32 regardless of its
            dtype.
        platforms: Platforms to lower the programs for.

    Returns:
        The files written.
    """
    folder = Path(folder)
    files = []
    for tower in _towers(params, config):
        exported = export.export(jax.jit(tower.encode), platforms=platforms)
        files.append(folder / f"{tower.name}.stablehlo")
        with replacing(files[-1]) as draft:
            draft.write_bytes(exported(tower.batch).serialize())
    facts = {"platforms": list(platforms), "jax": jax.__version__}
    return *files, _write_manifest(folder, config, facts)


def export_onnx(
    folder: str | Path, params: Mapping[str, Any], config: ModelConfig
) -> tuple[Path, ...]:
    """Write image_tower.onnx, text_tower.onnx and towers.json, through jax2onnx.

    The inputs are named "images" and "tokens", the output "features". Large parameters
    go into files NAME.onnx.data, which must stay beside their graph.

    Returns:
        The files written.

    Raises:
        WeightsError: jax2onnx is not installed.
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise WeightsError(
            f"ONNX export requires the package jax2onnx ({error}): pip install onnx "
            "onnx-ir onnxruntime sympy, then pip install --no-deps jax2onnx"
        ) from error
    # They warn about every shape left to the runtime, and about every jax2onnx
    # example whose packages are missing.
    for name in ("onnx_ir.serde", "jax2onnx.plugins.plugin_system"):
        logging.getLogger(name).setLevel(logging.ERROR)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for tower in _towers(params, config):
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            path = Path(unfinished) / f"{tower.name}.onnx"
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
            for written in sorted(Path(unfinished).iterdir()):
                files.append(folder / written.name)
                shutil.copymode(path, written)  # data files are readable by owner only
                with replacing(files[-1]) as draft:
                    shutil.copy(written, draft)
    facts = {"opset": OPSET, "jax": jax.__version__}
    return *files, _write_manifest(folder, config, facts)


def _towers(params: Mapping[str, Any], config: ModelConfig) -> tuple[Tower, Tower]:
    """Return both towers with their parameters as constants of the programs."""
    config = without_training_heads(config).portable
    constants = jax.tree.map(jnp.asarray, params_of(config, params))
    image = functools.partial(image_features, config, constants)
    text = functools.partial(text_features, config, constants)
    height, width = config.image_size
    return (
        Tower("image_tower", image, f"b, {height}, {width}, 3", jnp.uint8),
        Tower("text_tower", text, f"b, {config.context_length}", jnp.int32),
    )


def _write_manifest(folder: Path, config: ModelConfig, facts: dict[str, Any]) -> Path:
    """Write what a caller needs to know to prepare the inputs."""
    sizes = {
        "image_size": list(config.image_size),
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "feature_width": config.feature_width,
        "activation": config.activation,
    }
    write_json(folder / MANIFEST, sizes | facts)
    return folder / MANIFEST
