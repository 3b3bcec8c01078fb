# SPDX-License-Identifier: Apache-2.0
"""PyTorch's zip archives: find the entries and validate each tensor against them."""

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmfa_jax.weights.groups import choose_group, is_model
from fmfa_jax.weights.pickles import (
    MAX_NAME,
    MAX_PICKLE_BYTES,
    Inert,
    ModuleRecord,
    StorageRecord,
    TensorRecord,
    read_pickle,
)
from fmfa_jax.weights.tensors import (
    MAX_AXES,
    MAX_TENSORS,
    StoredTensor,
    WeightsError,
    check_names,
    listed,
    overlaps,
    shown,
    span,
)
from fmfa_jax.weights.zip_index import Entry, read_index

# What is read: the pickle, the byte order and the storages. TorchScript's code is not.
_WANTED = re.compile(r"[^/]+/(data\.pkl|byteorder|data/[^/]*)")
MAX_MODULES = 2 * MAX_TENSORS
# Folders within folders: a state dict lies at most so deep.
MAX_DEPTH = 4


@dataclass(frozen=True)
class ZipContent:
    """The contents of a PyTorch archive; see `archive.Archive`."""

    kind: str
    tensors: Mapping[str, StoredTensor]
    others: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    notes: tuple[str, ...] = ()


def read_zip(path: Path, key: str = "") -> ZipContent:
    """List the tensors of a PyTorch archive (state dict or TorchScript module).

    Args:
        path: The archive.
        key: Which of several state dicts to take, with dots where they are nested.
    """
    entries, root = _entries(path)
    content = read_pickle(_entry_bytes(path, entries[f"{root}/data.pkl"]))
    if isinstance(content, ModuleRecord):
        found = dict(_module_tensors(content))
        tensors = _located(path, found, entries, root)
        return ZipContent("torchscript", tensors, key=key)
    groups = dict(_state_dicts(content))
    choice = choose_group(groups, key, _held(content))
    others, reasons = _besides(content, choice.name, groups)
    tensors = _located(path, groups[choice.name], entries, root)
    return ZipContent("torch", tensors, others, reasons, choice.rest, choice.notes)


def _entries(path: Path) -> tuple[dict[str, Entry], str]:
    """Locate the pickle and the storages; also return the archive's root folder."""
    entries: dict[str, Entry] = {}
    for entry in read_index(path, _WANTED):
        # As file managers of Apple add it.
        if entry.name.startswith("__MACOSX/"):
            continue
        if entry.name in entries:
            raise WeightsError(f"entry {shown(entry.name)} occurs twice")
        entries[entry.name] = entry
    roots = [n[: -len("/data.pkl")] for n in entries if n.endswith("/data.pkl")]
    if len(roots) != 1 or "/" in roots[0]:
        raise WeightsError(_no_archive(entries, len(roots)))
    _check_byte_order(path, entries.get(f"{roots[0]}/byteorder"))
    return entries, roots[0]


def _no_archive(entries: Mapping[str, Entry], roots: int) -> str:
    if any(name.endswith(".npy") for name in entries):
        return (
            "it is NumPy's .npz, as JAX code saves weights; wanted PyTorch's or "
            "safetensors files of a CLIP"
        )
    return (
        f"a zip file with {roots} data.pkl is no PyTorch archive; expected one, in the "
        "archive's root folder. If it holds a weight file, unpack it"
    )


def _entry_bytes(path: Path, entry: Entry) -> bytes:
    if entry.size > MAX_PICKLE_BYTES:
        raise WeightsError(
            f"{shown(entry.name)} has {entry.size} bytes; the limit is "
            f"{MAX_PICKLE_BYTES}"
        )
    with path.open("rb") as stream:
        stream.seek(entry.offset)
        return stream.read(entry.size)


def _check_byte_order(path: Path, entry: Entry | None) -> None:
    if entry is not None and (
        entry.size > 100 or _entry_bytes(path, entry).strip() != b"little"
    ):
        raise WeightsError(
            "the tensors are big-endian; save them on a little-endian machine"
        )


def _module_tensors(module: ModuleRecord) -> Iterator[tuple[str, TensorRecord]]:
    """Yield the tensors of a TorchScript module with their dotted names."""
    waiting = [("", module)]
    count = 0
    while waiting:
        prefix, module = waiting.pop()
        for name, value in module.attributes.items():
            whole = prefix + name
            if isinstance(value, TensorRecord):
                yield whole, value
            elif isinstance(value, ModuleRecord):
                waiting.append((f"{whole}.", value))
            else:
                continue
            count += 1
            if count > MAX_MODULES or len(whole) > MAX_NAME:
                raise WeightsError(
                    f"the archive nests more than {MAX_MODULES} modules, or names "
                    f"longer than {MAX_NAME} characters"
                )


def _items(content: Any) -> Mapping[Any, Any]:
    """Return what a mapping holds; nothing for anything else."""
    if isinstance(content, Inert):
        return content.items or {}
    return content if isinstance(content, dict) else {}


def _state_dicts(content: Any) -> Iterator[tuple[str, dict[str, TensorRecord]]]:
    """Yield every mapping of names to tensors with the path of keys that leads to it.

    Raises:
        WeightsError: The content is no mapping.
    """
    if not isinstance(content, dict) and not _items(content):
        raise WeightsError(_no_mapping(content))
    waiting, seen = deque([("", content, 0)]), {id(content)}
    while waiting:
        path, mapping, depth = waiting.popleft()
        tensors = {}
        for key, value in _items(mapping).items():
            if type(key) is not str:
                if isinstance(value, TensorRecord) and not path:
                    raise WeightsError(
                        "the names in the state dict are not all strings"
                    )
            elif isinstance(value, TensorRecord):
                tensors[key] = value
            elif _items(value) and depth < MAX_DEPTH and id(value) not in seen:
                seen.add(id(value))
                waiting.append((f"{path}.{key}" if path else key, value, depth + 1))
        if tensors:
            yield path, tensors


def _no_mapping(content: Any) -> str:
    if isinstance(content, Inert):
        return (
            f"no state dict in this file, but a whole object, which asks for "
            f"{shown(content.name)}; nothing was executed. Save model.state_dict() "
            "instead of the model"
        )
    return (
        f"no state dict in this file, but a {type(content).__name__}; save "
        "model.state_dict() instead of the model"
    )


def _held(content: Any) -> str:
    """Describe the top level of a file, for an error."""
    keys = [_label(key, value) for key, value in list(_items(content).items())[:12]]
    return ", ".join(keys) + (", ..." if len(_items(content)) > 12 else "") or "nothing"


def _label(key: Any, value: Any) -> str:
    name = shown(key) if isinstance(key, str) else "<no string>"
    if isinstance(value, Inert) and not value.items:
        return f"{name} (a {shown(value.name)})"
    return name


def _besides(
    content: Any, chosen: str, groups: Mapping[str, Mapping[str, TensorRecord]]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return what lies on the way to a state dict and in it, and is not its tensors.

    Returns:
        Their names, and for objects and other models a reason.
    """
    others: list[str] = []
    reasons: dict[str, str] = {}
    path, rest = "", chosen
    while True:
        items = _items(content)
        step = next((k for k in items if type(k) is str and _leads(k, rest)), None)
        for key, value in items.items():
            if key == step if rest else isinstance(value, TensorRecord):
                continue
            name = shown(key) if isinstance(key, str) else "<no string>"
            others.append(name)
            if isinstance(value, Inert):
                reasons[name] = f"an object ({shown(value.name)}), not read"
            elif is_model(groups.get(f"{path}{key}", ())):
                reasons[name] = "weights of another model"
        if not rest or step is None:
            return tuple(others), reasons
        content, path, rest = items[step], f"{path}{step}.", rest[len(step) + 1 :]


def _leads(key: str, path: str) -> bool:
    return bool(path) and (path == key or path.startswith(f"{key}."))


def _located(
    path: Path,
    found: Mapping[str, TensorRecord],
    entries: Mapping[str, Entry],
    root: str,
) -> dict[str, StoredTensor]:
    tensors, problems = {}, []
    check_names(found)
    for name, record in found.items():
        try:
            tensors[name] = _locate(path, record, entries, root)
        except WeightsError as error:
            problems.append(f"{shown(name)}: {error}")
    if problems:
        raise WeightsError(
            f"tensors that do not fit their storage:\n{listed(problems)}"
        )
    return tensors


def _locate(
    path: Path, record: TensorRecord, entries: Mapping[str, Entry], root: str
) -> StoredTensor:
    """Validate a tensor record against its storage and the archive."""
    storage, shape, strides = record.storage, record.shape, record.strides
    numbers = (record.offset, *_ints(shape), *_ints(strides))
    if not isinstance(storage, StorageRecord) or len(shape) != len(strides):
        raise WeightsError("its description is not one that PyTorch writes")
    if any(type(n) is not int or n < 0 for n in numbers):
        raise WeightsError("its offset, sizes and strides are not all counts")
    key = f"{root}/data/{storage.key}"
    entry = entries.get(key)
    if entry is None and storage.numel:
        raise WeightsError(f"the archive has no storage {shown(storage.key)!r}")
    size = entry.size if entry else 0
    if size < storage.numel * storage.dtype.itemsize:
        raise WeightsError(
            f"storage {shown(storage.key)} should hold {storage.numel} x "
            f"{storage.dtype}, but the archive has {size} bytes"
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
    start = entry.offset if entry else 0
    return StoredTensor(
        path=path,
        dtype=storage.dtype,
        shape=tuple(shape),
        strides=tuple(strides),
        offset=start + record.offset * storage.dtype.itemsize,
    )


def _ints(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list) or len(value) > MAX_AXES:
        raise WeightsError("its sizes or strides are not a short tuple")
    return tuple(value)
