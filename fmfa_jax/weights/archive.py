# SPDX-License-Identifier: Apache-2.0
"""Read weight files without PyTorch and without executing anything in them.

Supports PyTorch's zip archives (state dicts, TorchScript modules) and safetensors.
Reading yields names and places; tensors are mapped one by one.
"""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from fmfa_jax.weights.damage import HEAD_BYTES, what_it_is
from fmfa_jax.weights.tensors import (
    MAX_AXES,
    StoredTensor,
    WeightsError,
    check_names,
    dense_strides,
    shown,
)
from fmfa_jax.weights.torch_zip import read_zip

# A header of a thousand layers has half of it; Python needs 25 times as much for it.
MAX_HEADER_BYTES = 2 * 2**20

_SAFETENSORS_TYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class Archive:
    """The contents of a weight file.

    Attributes:
        path: The file, or the index of several.
        kind: "torchscript", "torch" or "safetensors".
        tensors: Where each tensor is, by name, in the file's order.
        metadata: Strings stored in a safetensors file.
        others: Names of entries that are not weights (optimizer, epoch, ...).
        reasons: Why some of them are none: objects, of which nothing but the class is
            known, and other models.
        key: What is left of the key that chose among several state dicts.
        notes: What was chosen, for people.
        files: The files that hold the tensors.
    """

    path: Path
    kind: str
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def read_archive(path: str | Path, key: str = "") -> Archive:
    """List the contents of a weight file without executing any of it.

    Args:
        path: The file.
        key: Which of several state dicts to take.

    Raises:
        WeightsError: The file is missing, damaged or in PyTorch's legacy format, or
            asks for what no weight file needs.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise WeightsError(f"no weight file at {path}")
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
        if head.startswith(b"PK"):
            archive = Archive(path=path, files=(path,), **vars(read_zip(path, key)))
        elif head[8:9] == b"{":
            archive = _read_safetensors(path, key)
        else:
            raise WeightsError(what_it_is(path, head))
    except WeightsError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    _check_total(archive)
    return archive


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of(archive: Archive) -> str:
    """Return the SHA-256 of a weight file, or of the digests of several."""
    if len(archive.files) == 1:
        return sha256(archive.files[0])
    digests = "".join(sha256(path) for path in archive.files)
    return hashlib.sha256(digests.encode()).hexdigest()


def _check_total(archive: Archive) -> None:
    """Refuse tensors much larger than the file, which must share a storage."""
    total = sum(tensor.nbytes for tensor in archive.tensors.values())
    size = archive.path.stat().st_size
    if total > 2 * size:
        raise WeightsError(
            f"{archive.path}: its tensors add up to {total} bytes, but the file has "
            f"{size}: many of them overlap in one storage"
        )


def _read_safetensors(path: Path, key: str) -> Archive:
    """Let the library validate the header, then take the places from it."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > MAX_HEADER_BYTES:
            raise WeightsError(
                f"the safetensors header has {length} bytes, or the file is damaged; "
                f"the limit is {MAX_HEADER_BYTES}"
            )
        text = stream.read(length)
    try:
        with safe_open(path, framework="numpy") as checked:
            names = list(checked.keys())
        header = json.loads(text)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"the safetensors file is truncated or damaged ({shown(error)}); download "
            "it again"
        ) from error
    check_names(names)
    tensors = {name: _stored(path, name, header[name], 8 + length) for name in names}
    metadata = header.get("__metadata__") or {}
    return Archive(path, "safetensors", tensors, metadata, key=key, files=(path,))


def _stored(path: Path, name: str, entry: dict, start: int) -> StoredTensor:
    if entry["dtype"] not in _SAFETENSORS_TYPES:
        raise WeightsError(
            f"{shown(name)} has the unsupported dtype {shown(entry['dtype'])}"
        )
    shape = tuple(entry["shape"])
    if len(shape) > MAX_AXES:
        raise WeightsError(f"{shown(name)} has {len(shape)} axes")
    return StoredTensor(
        path=path,
        dtype=_SAFETENSORS_TYPES[entry["dtype"]],
        shape=shape,
        strides=dense_strides(shape),
        offset=start + entry["data_offsets"][0],
    )
