# SPDX-License-Identifier: Apache-2.0
"""The folder of an index: what it holds, and how it changes whole or not at all.

    index.json        what the index is; an index is what this file names, no more
    shards/NAME/      embeddings with their files (see `shards`); never changed
    tokenizer/        a copy of the tokenizer, where it is not CLIP's own
    bad_images.tsv    pictures that could not be read, and why
    pending/          finished parts of an `index` or `add` that has not ended yet

A writer lays new shards beside the old ones, replaces index.json at one stroke, and
only then deletes what nothing names any more. Killed at any time, it leaves the last
good index, and its next run continues from pending/.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 1
STORAGES = ("float32", "int16", "int8")
ENGINES = ("exact", "faiss")
MANIFEST, SHARDS, PENDING, TOKENIZER = "index.json", "shards", "pending", "tokenizer"
BAD_LIST = "bad_images.tsv"
PREPROCESSING = "upright RGB, Pillow bilinear antialiased resize, CLIP mean and std"
"""How a picture becomes the model's input; an index made otherwise is refused."""


class SearchError(ValueError):
    """Index, gallery or query cannot be used; the message says what to do."""


@dataclass(frozen=True)
class BadFile:
    """A file that is no usable picture, as it was when it was tried."""

    file: str
    size: int
    mtime_ns: int
    reason: str


@dataclass(frozen=True)
class Model:
    """Which model made the embeddings.

    Attributes:
        path: where it lay; only a hint.
        sha256: of its weight file; this is what counts.
        config: its ModelConfig as JSON holds it.
        source_grid: as stated when the file was loaded, None where it was not.
    """

    path: str
    sha256: str
    config: dict[str, Any]
    source_grid: tuple[int, int] | None


@dataclass(frozen=True)
class ShardName:
    """A shard that belongs to the index, and how many pictures it holds."""

    name: str
    rows: int


@dataclass(frozen=True)
class FaissRecord:
    """A FAISS index over all shards, in their order.

    Attributes:
        file: in the folder of the index.
        probes: cells that a query looks into.
        recall: recall@10 against exact search, as measured when it was built.
    """

    file: str
    probes: int
    recall: float


@dataclass(frozen=True)
class Manifest:
    """What an index is: the content of index.json.

    Attributes:
        gallery: absolute folder of the pictures.
        model: what embedded them.
        tokenizer: "clip", or "tokenizer" for the copy in the index.
        preprocessing: how pictures became the model's input.
        storage: one of STORAGES.
        engine: one of ENGINES.
        shards: in order; rows are numbered through them.
        bad: files that are no usable pictures.
        excluded: files and folders that were removed, and stay out until they are
            added by name.
        faiss: only where the engine is "faiss".
    """

    gallery: str
    model: Model
    tokenizer: str
    preprocessing: str
    storage: str
    engine: str
    shards: tuple[ShardName, ...] = ()
    bad: tuple[BadFile, ...] = ()
    excluded: tuple[str, ...] = ()
    faiss: FaissRecord | None = None

    @property
    def rows(self) -> int:
        """Pictures in the index."""
        return sum(shard.rows for shard in self.shards)


def read_manifest(folder: str | Path) -> Manifest:
    """Read index.json.

    Raises:
        SearchError: there is none, or it is not one that this code reads.
    """
    path = Path(folder) / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SearchError(_missing(Path(folder))) from error
    except ValueError as error:
        raise SearchError(
            f"{path} is damaged ({error}); index the gallery again"
        ) from error
    version = values.get("version") if isinstance(values, dict) else None
    if version != VERSION:
        raise SearchError(
            f"{path} has version {version}, this code reads {VERSION}; index the "
            "gallery again into another folder"
        )
    try:
        return _manifest(values)
    except (KeyError, TypeError) as error:
        raise SearchError(
            f"{path} lacks or mistakes an entry ({error}); index the gallery again"
        ) from error


def _missing(folder: Path) -> str:
    if (folder / PENDING).is_dir():
        return (
            f"the index {folder} is not finished: run the same `index` command again, "
            "it continues where it stopped"
        )
    return (
        f"no index at {folder}; make one: python -m fmfa_jax.search index GALLERY "
        f"--model RUN_OR_WEIGHTS --out {folder}"
    )


def _manifest(values: dict[str, Any]) -> Manifest:
    model, faiss = values["model"], values["faiss"]
    grid = model["source_grid"]
    return Manifest(
        gallery=values["gallery"],
        model=Model(**{**model, "source_grid": None if grid is None else tuple(grid)}),
        tokenizer=values["tokenizer"],
        preprocessing=values["preprocessing"],
        storage=values["storage"],
        engine=values["engine"],
        shards=tuple(ShardName(**shard) for shard in values["shards"]),
        bad=tuple(BadFile(**bad) for bad in values["bad"]),
        excluded=tuple(values["excluded"]),
        faiss=None if faiss is None else FaissRecord(**faiss),
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace index.json at one stroke, then bring the list of bad files up to date."""
    values = {"version": VERSION, **dataclasses.asdict(manifest)}
    write_text(folder / MANIFEST, json.dumps(values, indent=1) + "\n")
    lines = [
        "\t".join((_one_line(bad.file), _one_line(bad.reason))) for bad in manifest.bad
    ]
    write_text(folder / BAD_LIST, "\n".join(["file\treason", *lines]) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file that is the old or the new one, whenever the machine stops."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    # A name that is not UTF-8 is written with escapes.
    with unfinished.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, manifest: Manifest | None) -> None:
    """Delete what no manifest names: remains of writers that were killed."""
    named = {shard.name for shard in manifest.shards} if manifest else set()
    if (folder / SHARDS).is_dir():
        for entry in (folder / SHARDS).iterdir():
            if entry.name not in named:
                shutil.rmtree(entry)
    kept = manifest.faiss.file if manifest and manifest.faiss else ""
    for entry in folder.glob("*.faiss"):
        if entry.name != kept:
            entry.unlink()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the index for one writer; readers need no lock.

    Raises:
        SearchError: another process writes to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SearchError(
                f"another process is writing to the index {folder}; wait for it"
            ) from error
        yield


def tokenizer_files(folder: Path) -> tuple[Path, Path]:
    """The two files that a folder's tokenizer is made of."""
    return folder / "vocab.json", folder / "merges.txt"


def keep_tokenizer(folder: Path, name: str) -> None:
    """Copy a tokenizer into the index, which then stands alone; "clip" needs none.

    Raises:
        SearchError: the index was begun with another one.
    """
    if name == "clip":
        return
    target = folder / TOKENIZER
    files = [path.read_bytes() for path in tokenizer_files(Path(name))]
    if target.is_dir():
        if files != [path.read_bytes() for path in tokenizer_files(target)]:
            raise SearchError(
                f"{folder} was begun with another tokenizer than {name}; choose "
                "another --out"
            )
        return
    draft = folder / f".{TOKENIZER}.unfinished"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    for path, content in zip(tokenizer_files(draft), files, strict=True):
        path.write_bytes(content)
    os.replace(draft, target)


def _one_line(text: str) -> str:
    return " ".join(text.split())
