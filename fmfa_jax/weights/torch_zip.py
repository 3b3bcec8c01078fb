# SPDX-License-Identifier: Apache-2.0
"""PyTorch's zip archives: find the entries and validate each tensor against them."""

import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmfa_jax.weights.pickles import (
    MAX_PICKLE_BYTES,
    ModuleRecord,
    StorageRecord,
    TensorRecord,
    read_pickle,
)
from fmfa_jax.weights.tensors import StoredTensor, WeightsError, overlaps, span

WRAPPERS = ("model", "state_dict")
MAX_MODULES = 100_000


@dataclass(frozen=True)
class ZipContent:
    """The contents of a PyTorch archive; see `archive.Archive`."""

    kind: str
    tensors: Mapping[str, StoredTensor]
    others: tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    offset: int
    size: int


def read_zip(path: Path) -> ZipContent:
    """List the tensors of a PyTorch archive (state dict or TorchScript module)."""
    entries, root = _zip_entries(path)
    content = read_pickle(_entry_bytes(path, entries[f"{root}/data.pkl"]))
    others: tuple[str, ...] = ()
    if isinstance(content, ModuleRecord):
        kind, found = "torchscript", dict(_module_tensors(content))
    else:
        kind = "torch"
        found, others = _state_dict(content)
    tensors, problems = {}, []
    for name, record in found.items():
        try:
            tensors[name] = _locate(path, record, entries, root)
        except WeightsError as error:
            problems.append(f"  {name}: {error}")
    if problems:
        listed = "\n".join(problems)
        raise WeightsError(f"tensors that do not fit their storage:\n{listed}")
    return ZipContent(kind=kind, tensors=tensors, others=others)


def _zip_entries(path: Path) -> tuple[dict[str, _Entry], str]:
    """Locate the pickle and the storages; also return the archive's root folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, struct.error) as error:
        raise WeightsError(
            f"the zip archive is truncated or damaged ({error}); download it again"
        ) from error
    roots = [i.filename[:-9] for i in infos if i.filename.endswith("/data.pkl")]
    if len(roots) != 1 or "/" in roots[0]:
        raise WeightsError(
            f"a zip file with {len(roots)} data.pkl is no PyTorch archive; expected "
            "one, in the archive's root folder"
        )
    root = roots[0]
    entries: dict[str, _Entry] = {}
    size = path.stat().st_size
    with path.open("rb") as stream:
        for info in infos:
            name = info.filename
            if name in entries:
                raise WeightsError(f"entry {name} occurs twice")
            if name in (f"{root}/data.pkl", f"{root}/byteorder") or name.startswith(
                f"{root}/data/"
            ):
                entries[name] = _entry(stream, info, size)
    _check_byte_order(path, entries.get(f"{root}/byteorder"))
    return entries, root


def _entry(stream: Any, info: zipfile.ZipInfo, file_size: int) -> _Entry:
    """Locate an entry's bytes, which must be stored uncompressed."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise WeightsError(
            f"entry {info.filename} is compressed or encrypted ({info.compress_size} "
            f"-> {info.file_size} bytes); PyTorch stores tensors uncompressed"
        )
    stream.seek(info.header_offset)
    header = stream.read(30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise WeightsError(f"entry {info.filename} has no header where it should be")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    offset = info.header_offset + 30 + name_length + extra_length
    if offset + info.file_size > file_size:
        raise WeightsError(f"entry {info.filename} reaches beyond the end of the file")
    return _Entry(offset=offset, size=info.file_size)


def _entry_bytes(path: Path, entry: _Entry) -> bytes:
    if entry.size > MAX_PICKLE_BYTES:
        raise WeightsError(
            f"data.pkl has {entry.size} bytes; the limit is {MAX_PICKLE_BYTES}"
        )
    with path.open("rb") as stream:
        stream.seek(entry.offset)
        return stream.read(entry.size)


def _check_byte_order(path: Path, entry: _Entry | None) -> None:
    if entry is not None and _entry_bytes(path, entry).strip() != b"little":
        raise WeightsError(
            "the tensors are big-endian; save them on a little-endian machine"
        )


def _module_tensors(module: ModuleRecord) -> Iterator[tuple[str, TensorRecord]]:
    """Yield the tensors of a TorchScript module with their dotted names."""
    waiting = [("", module)]
    for _ in range(MAX_MODULES):
        if not waiting:
            return
        prefix, module = waiting.pop()
        for name, value in module.attributes.items():
            if isinstance(value, TensorRecord):
                yield prefix + name, value
            elif isinstance(value, ModuleRecord):
                waiting.append((f"{prefix}{name}.", value))
    raise WeightsError(f"the archive nests more than {MAX_MODULES} modules")


def _state_dict(content: Any) -> tuple[dict[str, TensorRecord], tuple[str, ...]]:
    """Find the state dict: the content itself, or nested under `WRAPPERS`."""
    others: list[str] = []
    for _ in range(len(WRAPPERS) + 1):
        if not isinstance(content, dict):
            break
        inner = [key for key in WRAPPERS if isinstance(content.get(key), dict)]
        if len(inner) == 1:
            others += [_label(key) for key in content if key != inner[0]]
            content = content[inner[0]]
            continue
        found = {k: v for k, v in content.items() if isinstance(v, TensorRecord)}
        if inner or not found:
            raise WeightsError(
                f"no state dict in this file: expected tensors by name, at the top or "
                f"under one of {', '.join(WRAPPERS)}; it holds {_keys(content)}"
            )
        if not all(type(name) is str for name in found):
            raise WeightsError("the names in the state dict are not all strings")
        others += [_label(key) for key in content if key not in found]
        return found, tuple(others)
    raise WeightsError(
        f"no state dict in this file, but a {type(content).__name__}; save "
        "model.state_dict() instead of the model"
    )


def _keys(content: dict[Any, Any]) -> str:
    names = [_label(key) for key in list(content)[:12]]
    return ", ".join(names) + (", ..." if len(content) > 12 else "") or "nothing"


def _label(key: Any) -> str:
    """Return a key as text; anything but a string may be too large to print."""
    return key[:200] if isinstance(key, str) else f"<{type(key).__name__}>"


def _locate(
    path: Path, record: TensorRecord, entries: Mapping[str, _Entry], root: str
) -> StoredTensor:
    """Validate a tensor record against its storage and the archive."""
    storage, shape, strides = record.storage, record.shape, record.strides
    numbers = (record.offset, *_ints(shape), *_ints(strides))
    if not isinstance(storage, StorageRecord) or len(shape) != len(strides):
        raise WeightsError("its description is not one that PyTorch writes")
    if any(type(n) is not int or n < 0 for n in numbers):
        raise WeightsError("its offset, sizes and strides are not all counts")
    entry = entries.get(f"{root}/data/{storage.key}")
    if entry is None:
        raise WeightsError(f"the archive has no storage {storage.key!r}")
    if entry.size < storage.numel * storage.dtype.itemsize:
        raise WeightsError(
            f"storage {storage.key} should hold {storage.numel} x {storage.dtype}, but "
            f"the archive has {entry.size} bytes"
        )
    if record.offset + span(tuple(shape), tuple(strides)) > storage.numel:
        raise WeightsError(
            f"sizes {tuple(shape)}, strides {tuple(strides)} and offset "
            f"{record.offset} exceed the storage of {storage.numel} elements"
        )
    if overlaps(tuple(shape), tuple(strides)):
        raise WeightsError(
            f"sizes {tuple(shape)} and strides {tuple(strides)} form an overlapping "
            "view; save a contiguous copy"
        )
    return StoredTensor(
        path=path,
        dtype=storage.dtype,
        shape=tuple(shape),
        strides=tuple(strides),
        offset=entry.offset + record.offset * storage.dtype.itemsize,
    )


def _ints(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list) or len(value) > 16:
        raise WeightsError("its sizes or strides are not a short tuple")
    return tuple(value)
