# SPDX-License-Identifier: Apache-2.0
"""Our own format: safetensors named by our paths, with the config as metadata.

The metadata also has a SHA-256 over all else that the file holds: metadata, names,
shapes and values. Files of version 1 have none.
"""

import dataclasses
import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from fmfa_jax.files import replacing
from fmfa_jax.models import ModelConfig
from fmfa_jax.weights.archive import Archive
from fmfa_jax.weights.tensors import WeightsError, shown

FORMAT = {"format": "fmfa_jax", "version": "2"}
_READABLE = ("1", "2")  # 1 had no digest
DIGEST = "sha256"
_NO_DIGEST = "0" * 64
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
    taken = extra.keys() & {*FORMAT, "config", DIGEST}
    if taken:
        raise ValueError(f"metadata keys reserved by the format: {sorted(taken)}")
    metadata = {**FORMAT, "config": json.dumps(dataclasses.asdict(config)), **extra}
    metadata[DIGEST] = _NO_DIGEST
    return write_safetensors(path, flatten_dict(params, sep="/"), metadata)


def check_digest(archive: Archive) -> None:
    """Compare the digest that `save_native` stored in a file, if it has one.

    Raises:
        WeightsError: The file has changed since it was written.
    """
    facts = archive.metadata
    stated = facts.get(DIGEST)
    ours = facts.get("format") == FORMAT["format"]
    if not ours or (stated is None and facts.get("version") == "1"):
        return
    found = _digest(
        archive.metadata,
        {
            name: (tensor.shape, _sha256(tensor.read()))
            for name, tensor in archive.tensors.items()
        },
    )
    if found != stated:
        raise WeightsError(
            f"{archive.path} is damaged, or was changed after it was written: its "
            f"content has SHA-256 {found}, and {shown(stated)} was noted; nothing was "
            "loaded. Copy it again, or take another file"
        )


def native_config(archive: Archive) -> ModelConfig:
    """Return the config that `save_native` stored in a file.

    Raises:
        WeightsError: The format has another version, or the config is invalid.
    """
    version = archive.metadata.get("version")
    if version not in _READABLE:
        raise WeightsError(
            f"{archive.path} has version {shown(version)} of our format, but this code "
            f"reads the versions {' and '.join(_READABLE)}"
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
    """Write float32 arrays one by one, copying at most one of them at a time.

    A digest among the metadata is filled in; see `check_digest`.
    """
    path = Path(path)
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    content = {}
    with replacing(path) as draft, draft.open("wb") as stream:
        stream.write(_header(metadata, shapes))
        for name, array in arrays.items():
            dense = np.ascontiguousarray(np.asarray(array), dtype=np.float32)
            stream.write(_bytes(dense))
            content[name] = shapes[name], _sha256(dense)
        if DIGEST in metadata:
            stream.seek(0)
            known = {**metadata, DIGEST: _digest(metadata, content)}
            stream.write(_header(known, shapes))
    return path


def _header(
    metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        place = (end, end := end + 4 * math.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": place}
    text = json.dumps(header).encode()
    # The format requires data to start at a multiple of eight bytes.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _digest(
    metadata: Mapping[str, str], content: Mapping[str, tuple[tuple[int, ...], str]]
) -> str:
    """Digest metadata, and shape and SHA-256 of each tensor, in whatever order."""
    other = [(key, text) for key, text in metadata.items() if key != DIGEST]
    whole = json.dumps([sorted(other), sorted(content.items())])
    return hashlib.sha256(whole.encode()).hexdigest()


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(_bytes(array)).hexdigest()


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)
