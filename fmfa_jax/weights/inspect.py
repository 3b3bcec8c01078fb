# SPDX-License-Identifier: Apache-2.0
"""What a weight file is and what would be loaded from it; nothing is loaded."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmfa_jax.models import PARTS
from fmfa_jax.weights.archive import Archive
from fmfa_jax.weights.folders import open_archive
from fmfa_jax.weights.hub import located
from fmfa_jax.weights.load import load_plan
from fmfa_jax.weights.sizes import infer_config
from fmfa_jax.weights.source import HINTS, Source, activation_of, open_source
from fmfa_jax.weights.tensors import WeightsError, shown


def describe(
    path: str | Path, *, activation: str, key: str, **sizes: Any
) -> Iterator[str]:
    """Yield the lines of a description.

    Args:
        path: File or folder, or hf://ORG/NAME.
        activation: See `load.load_params`.
        key: See `load.load_params`.
        sizes: `image_size`, `stride` and `context_length` of the model.

    Raises:
        WeightsError: The file cannot be read at all.
    """
    path = located(path)
    archive = open_archive(path, key)
    yield f"file     {shown(archive.path, 4096)}"
    try:
        source = open_source(path, key)
    except WeightsError as error:
        yield f"kind     {archive.kind}"
        yield f"family   not one that can be loaded: {error}"
    else:
        yield f"kind     {archive.kind}, {source.table.name} names"
        yield from _model(source, activation, sizes)
    yield f"precision {_precision(archive)}"
    yield from _contents(archive)


def _model(source: Source, activation: str, sizes: dict[str, Any]) -> Iterator[str]:
    """Describe what the file holds beside its tensors' names."""
    yield f"family   {source.family}"
    yield f"sha256   {source.sha256}"
    for note in source.notes:
        yield f"prefix   {note}" if "taken off" in note else f"note     {note}"
    activation, said = activation_of(source, activation, HINTS)
    yield f"activation {said}"
    try:
        config = infer_config(source, activation=activation, **sizes)
    except WeightsError as error:
        yield f"config   unknown: {error}"
        return
    yield f"config   {config}"
    try:
        load_plan(source, activation=activation, **sizes)
    except WeightsError as error:
        yield f"loads    nothing: {error}"
        return
    yield f"loads    {', '.join(part.name for part in PARTS if part.is_in(config))}"


def _precision(archive: Archive) -> str:
    counts = Counter(str(tensor.dtype) for tensor in archive.tensors.values())
    return ", ".join(f"{kind} ({n} tensors)" for kind, n in counts.most_common())


def _contents(archive: Archive) -> Iterator[str]:
    for key in sorted(archive.metadata):
        yield f"metadata {shown(key)}: {shown(archive.metadata[key], 2000)}"
    for name, tensor in archive.tensors.items():
        yield f"tensor   {shown(name)}  {tensor.dtype} {tensor.shape}"
    for name in archive.others:
        yield f"other    {name}: {archive.reasons.get(name, 'not a weight')}"
