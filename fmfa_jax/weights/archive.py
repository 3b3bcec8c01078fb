# SPDX-License-Identifier: Apache-2.0
"""Read weight files without PyTorch and without executing anything in them.

Supports PyTorch's zip archives (state dicts, TorchScript modules) and safetensors.
Reading yields names and places; tensors are mapped one by one.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from fmfa_jax.weights.tensors import StoredTensor, WeightsError, dense_strides
from fmfa_jax.weights.torch_zip import read_zip

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
        path: The file.
        kind: "torchscript", "torch" or "safetensors".
        tensors: Where each tensor is, by name, in the file's order.
        metadata: Strings stored in a safetensors file.
        others: Names of entries that are not weights (optimizer, epoch, ...).
    """

    path: Path
    kind: str
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()


def read_archive(path: str | Path) -> Archive:
    """List the contents of a weight file without executing any of it.

    Raises:
        WeightsError: The file is missing, damaged or in PyTorch's legacy format, or
            holds anything but tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weight file at {path}")
    with path.open("rb") as stream:
        head = stream.read(16)
    try:
        if head.startswith(b"PK"):
            archive = Archive(path=path, **vars(read_zip(path)))
        elif head[8:9] == b"{":
            archive = _read_safetensors(path)
        else:
            raise WeightsError(_unknown(path, head))
    except WeightsError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    _check_total(archive)
    return archive


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unknown(path: Path, head: bytes) -> str:
    if head[:1] == b"\x80":
        return (
            f"{path} is in PyTorch's format from before 1.6 (a bare pickle), which is "
            "not supported. Convert it where PyTorch is installed: "
            "python -c \"import torch; torch.save(torch.load('old.pth', "
            "map_location='cpu', weights_only=True), 'new.pth')\""
        )
    return (
        f"{path} is neither a PyTorch zip archive nor a safetensors file "
        f"(it starts with {head[:8]!r}); expected .pt/.pth/.bin or .safetensors"
    )


def _check_total(archive: Archive) -> None:
    """Refuse tensors much larger than the file, which must share a storage."""
    total = sum(tensor.nbytes for tensor in archive.tensors.values())
    size = archive.path.stat().st_size
    if total > 2 * size:
        raise WeightsError(
            f"{archive.path}: its tensors add up to {total} bytes, but the file has "
            f"{size}: many of them overlap in one storage"
        )


def _read_safetensors(path: Path) -> Archive:
    """Let the library validate the header, then take the places from it."""
    try:
        with safe_open(path, framework="numpy") as checked:
            names = list(checked.keys())
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"the safetensors file is truncated or damaged ({error}); download it again"
        ) from error
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name in names:
        entry = header[name]
        if entry["dtype"] not in _SAFETENSORS_TYPES:
            raise WeightsError(f"{name} has the unsupported dtype {entry['dtype']}")
        shape = tuple(entry["shape"])
        tensors[name] = StoredTensor(
            path=path,
            dtype=_SAFETENSORS_TYPES[entry["dtype"]],
            shape=shape,
            strides=dense_strides(shape),
            offset=8 + length + entry["data_offsets"][0],
        )
    return Archive(
        path=path, kind="safetensors", tensors=tensors, metadata=dict(metadata)
    )
