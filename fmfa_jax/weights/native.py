# SPDX-License-Identifier: Apache-2.0
"""Our own format: safetensors named by our paths, with the config as metadata."""

import dataclasses
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from fmfa_jax.files import replacing
from fmfa_jax.models import ModelConfig
from fmfa_jax.weights.archive import Archive
from fmfa_jax.weights.tensors import WeightsError, shown

FORMAT = {"format": "fmfa_jax", "version": "1"}
_SHARES = ("tse_ratio",)
# Largest sizes in a config; any other number is at most 2**16.
_MOST = {
    "vocab_size": 2**24,
    "classes": 2**24,
    "image_size": 8192,
    **dict.fromkeys(("image_layers", "text_layers", "irr_layers"), 1000),
}


def save_native(
    path: str | Path,
    params: Mapping[str, Any],
    config: ModelConfig,
    extra_metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write parameters and their config as one safetensors file.

    Args:
        path: The file; an existing one is replaced atomically.
        params: Nested dictionary of parameters. Stored as float32; whoever loads them
            chooses the compute dtype.
        config: Sizes of the parameters.
        extra_metadata: Further strings, such as the step or the data set.

    Raises:
        ValueError: `extra_metadata` uses a key that the format reserves.
    """
    extra = dict(extra_metadata or {})
    taken = extra.keys() & {*FORMAT, "config"}
    if taken:
        raise ValueError(f"metadata keys reserved by the format: {sorted(taken)}")
    metadata = {**FORMAT, "config": json.dumps(dataclasses.asdict(config)), **extra}
    return write_safetensors(path, flatten_dict(params, sep="/"), metadata)


def native_config(archive: Archive) -> ModelConfig:
    """Return the config that `save_native` stored in a file.

    Raises:
        WeightsError: The format has another version, or the config is invalid.
    """
    version = archive.metadata.get("version")
    if version != FORMAT["version"]:
        raise WeightsError(
            f"{archive.path} has version {shown(version)} of our format, but this code "
            f"reads version {FORMAT['version']}"
        )
    try:
        values = json.loads(archive.metadata["config"])
        values["image_size"] = tuple(values["image_size"])
        _check_numbers(values)
        # Files from before there was a choice have no activation: QuickGELU.
        return ModelConfig(**values)
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{archive.path} has no usable model config: {shown(error)}"
        ) from error


def _check_numbers(values: Mapping[str, Any]) -> None:
    """Refuse sizes that would cost more to look at than a file can hold."""
    for name, value in values.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, str) or name in _SHARES:
                continue  # ModelConfig knows the words and shares that it takes
            most = _MOST.get(name, 2**16)
            if type(number) is not int or not 0 <= number <= most:
                raise ValueError(
                    f"{name}: wanted a count of at most {most}, got {shown(number)}"
                )
    if len(values["image_size"]) != 2:
        raise ValueError("image_size: wanted height and width")


def write_safetensors(
    path: str | Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]
) -> Path:
    """Write float32 arrays one by one, copying at most one of them at a time."""
    path = Path(path)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, array in arrays.items():
        end = offset + 4 * int(np.prod(array.shape))
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    # The format requires data to start at a multiple of eight bytes.
    text += b" " * (-len(text) % 8)
    with replacing(path) as draft, draft.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        _write_arrays(stream, arrays.values())
    return path


def _write_arrays(stream: Any, arrays: Iterable[Any]) -> None:
    for array in arrays:
        dense = np.ascontiguousarray(np.asarray(array), dtype=np.float32)
        stream.write(dense.reshape(-1).view(np.uint8).data)
