# SPDX-License-Identifier: Apache-2.0
"""Folders of weights: runs of ours, Hugging Face's and open_clip's, sharded or not."""

import os
from pathlib import Path
from typing import Any

from data_pipeline import regular
from fmfa_jax.weights.archive import Archive, read_archive
from fmfa_jax.weights.tensors import (
    StoredTensor,
    WeightsError,
    check_names,
    listed,
    shown,
)

RUN_FILES = ("model_best.safetensors", "model_last.safetensors")
_PLAIN = ("model.safetensors", "pytorch_model.bin")
_OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
INDEX = ".index.json"
FILES = (*RUN_FILES, *_PLAIN, *(name + INDEX for name in _PLAIN), *_OPEN_CLIP)
# Each costs what a file may cost; a CLIP of 2.5 billion parameters has three.
MAX_SHARDS = 16


def open_archive(path: str | Path, key: str = "") -> Archive:
    """Open a weight file, the index of a sharded one, or the weights of a folder.

    Raises:
        WeightsError: There are none, or `read_archive` refuses them.
    """
    place = Path(os.path.expanduser(path))
    if os.path.isdir(place):
        place = _in_folder(place)
    elif not os.path.isfile(place):
        raise WeightsError(_nothing_at(str(path)))
    return (
        _read_shards(place) if place.name.endswith(INDEX) else read_archive(place, key)
    )


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object of bounded size; see `data_pipeline.regular`.

    Args:
        path: The file.
        what: What it should be, such as "a CLIP config", for the error.

    Raises:
        WeightsError: It is missing, too large, or something else.
    """
    try:
        value = regular.read_json(path)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is not {what} ({shown(error)})") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} is not {what}, but a {type(value).__name__}")
    return value


def _nothing_at(path: str) -> str:
    if "://" in path:
        return f"no weight file at {shown(path)}: download it, and name the local file"
    return (
        f"no weight file at {shown(path)}; wanted a file or folder on this machine, or "
        "hf://ORG/NAME for one on the Hugging Face Hub"
    )


def _in_folder(folder: Path) -> Path:
    for name in FILES:
        if os.path.isfile(folder / name):
            return folder / name
    raise WeightsError(
        f"no weights in the folder {folder}; expected one of {', '.join(FILES)}"
    )


def _read_shards(index: Path) -> Archive:
    """Read the tensors that an index lists, from files beside it."""
    places = _weight_map(index)
    names = shard_names(index)
    shards = {name: read_archive(index.parent / name) for name in names}
    tensors: dict[str, StoredTensor] = {}
    missing = []
    for name, shard in places.items():
        if name in shards[shard].tensors:
            tensors[name] = shards[shard].tensors[name]
        else:
            missing.append(f"{shown(name)} is not in {shown(shard)}")
    if missing:
        raise WeightsError(f"{index} does not fit its shards:\n{listed(missing)}")
    return Archive(
        path=index,
        kind=f"{shards[names[0]].kind} in {len(names)} shards",
        tensors=tensors,
        files=(index, *(index.parent / name for name in names)),
    )


def shard_names(index: Path) -> list[str]:
    """Return the files that an index lists, which lie beside it.

    Raises:
        WeightsError: It is no index of weights, or lists too many or other files.
    """
    names = sorted({_shard_name(index, name) for name in _weight_map(index).values()})
    if len(names) > MAX_SHARDS:
        raise WeightsError(f"{index}: {len(names)} shards; the limit is {MAX_SHARDS}")
    return names


def _weight_map(index: Path) -> dict[str, Any]:
    places = read_json(index, "an index of weights").get("weight_map")
    if not isinstance(places, dict) or not places:
        raise WeightsError(f"{index} has no weight_map: it is no index of weights")
    check_names(places)
    return places


def _shard_name(index: Path, name: Any) -> str:
    """Return the name of a shard, which must lie beside its index."""
    plain = isinstance(name, str) and name and Path(name).name == name
    if not plain or "\\" in name:
        raise WeightsError(
            f"{index}: wanted shards in its own folder, got {shown(name)!r}"
        )
    return name
