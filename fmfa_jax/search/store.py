# SPDX-License-Identifier: Apache-2.0
"""The folder of an index: what it holds, and how it changes whole or not at all.

    index.json                what the index is; only files that it names belong to it
    shards/NAME.safetensors   embeddings with their files (see `shards`); never changed
    NAME.faiss                the approximate index, where one was asked for
    tokenizer/                a copy of the tokenizer, unless it is CLIP's own
    bad_images.tsv            pictures that could not be read, and why

A writer lays new shards beside the old ones, replaces index.json in one step, and only
then deletes what nothing names any more. Killed at any time, it leaves a valid index.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.byte_pairs import table_files
from data_pipeline.findings import shortened
from data_pipeline.hints import printable
from data_pipeline.regular import read_json
from data_pipeline.tokenizer import WordTokenizer, open_tokenizer
from fmfa_jax import files

VERSION = 3
READABLE = (2, VERSION)
"""Version 2 had no SHA-256 of shards, nor of index.json itself."""
STORAGES = ("float32", "float16")
ENGINES = ("exact", "faiss", "qdrant")
RECORD, SHARDS, TOKENIZER = "index.json", "shards", "tokenizer"
BAD_LIST = "bad_images.tsv"
LARGEST_RECORD = 128 << 20
"""Bytes of an index.json, which names each bad file of the gallery."""
PREPROCESSING = "upright RGB, Pillow bilinear antialiased resize, CLIP mean and std"
"""How a picture becomes the model's input; an index made otherwise is refused."""


class SearchError(ValueError):
    """Index, gallery or query cannot be used; the message says what to do.

    Any function of this package that opens, reads or changes one may raise it.
    """

    def __init__(self, message: str) -> None:
        """Keep the message, safe to print."""
        super().__init__("\n".join(map(printable, message.split("\n"))))


@dataclass(frozen=True)
class BadFile:
    """A file that is not a usable picture, as it was when it was tried.

    `ctime_ns` is 0 where it was not noted.
    """

    file: str
    size: int
    mtime_ns: int
    reason: str
    ctime_ns: int = 0


@dataclass(frozen=True)
class ModelRecord:
    """Which model made the embeddings, identified by the digest of its weight file.

    `path` is a hint where it lay; `config` is its ModelConfig as JSON, `source_grid`
    what was given when the file was loaded.
    """

    path: str
    sha256: str
    config: dict[str, Any]
    source_grid: tuple[int, int] | None


@dataclass(frozen=True)
class ShardRecord:
    """A shard of the index, its number of pictures, and the SHA-256 of its file.

    An index of version 2 has no digests: "".
    """

    name: str
    rows: int
    sha256: str = ""


@dataclass(frozen=True)
class FaissRecord:
    """A FAISS index over all shards, in order.

    A query visits `probes` cells; `recall` is recall@10 against exact search, measured
    when the file was built, and `checksum` that of `shards.checksum`.
    """

    file: str
    probes: int
    recall: float
    checksum: str


@dataclass(frozen=True)
class RemoteRecord:
    """A collection of Qdrant at `uri`, which is to hold all shards.

    A query makes an `effort` (hnsw_ef) that had that recall@10 against exact search;
    0 until all rows are there.
    """

    uri: str
    collection: str
    effort: int = 0
    recall: float = 0.0


@dataclass(frozen=True)
class IndexRecord:
    """What an index is: the content of index.json.

    `tokenizer` is "clip" or TOKENIZER, the copy in the index, and `tokenizer_sha256`
    its fingerprint ("" in an index of version 2). Rows are numbered across
    the shards in order. What is `excluded`, files and folders, stays out until it is
    added by name. `faiss` is None with the engine "exact" and until indexing ends;
    `remote` is for "qdrant".
    """

    gallery: str
    model: ModelRecord
    tokenizer: str
    preprocessing: str
    storage: str
    engine: str
    shards: tuple[ShardRecord, ...] = ()
    bad: tuple[BadFile, ...] = ()
    excluded: tuple[str, ...] = ()
    faiss: FaissRecord | None = None
    tokenizer_sha256: str = ""
    remote: RemoteRecord | None = None

    @property
    def rows(self) -> int:
        """Number of pictures in the index."""
        return sum(shard.rows for shard in self.shards)

    @property
    def approximate(self) -> FaissRecord | RemoteRecord | None:
        """What searches approximately, where that is ready."""
        return self.faiss or (
            self.remote if self.remote and self.remote.effort else None
        )

    @property
    def undigested(self) -> int:
        """Number of shards whose SHA-256 is not known."""
        return sum(not shard.sha256 for shard in self.shards)


def tokenizer_name(folder: Path, record: IndexRecord) -> str:
    """What `open_tokenizer` opens the index's tokenizer by."""
    return "clip" if record.tokenizer == "clip" else str(folder / record.tokenizer)


def own_tokenizer(folder: Path, record: IndexRecord) -> WordTokenizer:
    """Open the index's tokenizer; see `open_tokenizer`."""
    return open_tokenizer(tokenizer_name(folder, record))


def read_record(folder: str | Path) -> IndexRecord:
    """Read index.json."""
    path = Path(folder) / RECORD
    try:
        values = read_json(path, largest=LARGEST_RECORD)
        version = values.get("version") if isinstance(values, dict) else None
        if version in READABLE:
            _check_digest(path, values)
            return _record(values)
    except SearchError:
        raise
    except FileNotFoundError as error:
        raise SearchError(
            f"no index at {folder}; make one: python -m fmfa_jax.search index GALLERY "
            f"--model RUN_OR_WEIGHTS --out {folder}"
        ) from error
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"lacks an entry or has a wrong one ({shortened(str(error), 200)})"
        raise SearchError(f"{path} {reason}; index the gallery again") from error
    except (OSError, ValueError) as error:
        reason = f"is damaged ({error})"
        raise SearchError(f"{path} {reason}; index the gallery again") from error
    raise SearchError(
        f"{path} has version {shortened(str(version), 50)}, this code reads "
        f"{READABLE}; index the gallery again into another folder"
    )


def _check_digest(path: Path, values: dict[str, Any]) -> None:
    """Take the digest out of the values of index.json, and compare it."""
    stated = values.pop("sha256", "")
    found = _digest(values)
    if stated != found and (stated or values["version"] == VERSION):
        raise SearchError(
            f"{path} is damaged: its content has SHA-256 {found}, and "
            f"{shortened(str(stated), 70)!r} was written; take it from a copy, or "
            "index the gallery again into another folder"
        )


def _digest(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _record(values: dict[str, Any]) -> IndexRecord:
    del values["version"]
    model, faiss = values["model"], values["faiss"]
    grid, remote = model["source_grid"], values.get("remote")
    typed = {
        "model": _typed(ModelRecord, {**model, "source_grid": grid and tuple(grid)}),
        "shards": tuple(_typed(ShardRecord, shard) for shard in values["shards"]),
        "bad": tuple(_typed(BadFile, bad) for bad in values["bad"]),
        "excluded": tuple(values["excluded"]),
        "remote": remote and _typed(RemoteRecord, remote),
        "faiss": faiss and _typed(FaissRecord, faiss),
    }
    record = _typed(IndexRecord, {**values, **typed})
    right = record.storage in STORAGES and record.engine in ENGINES
    right &= record.tokenizer in ("clip", TOKENIZER)
    right &= isinstance(values["excluded"], list)
    right &= all(isinstance(name, str) for name in record.excluded)
    right &= all(type(number) is int for number in record.model.source_grid or ())
    # Names that could lead to files elsewhere are none of ours.
    names = [shard.name for shard in record.shards]
    right &= len(set(names)) == len(names)
    right &= all(re.fullmatch(r"[0-9]+", name) for name in names)
    if record.faiss:
        right &= bool(re.fullmatch(r"[0-9]+\.faiss", record.faiss.file))
    if not right or not {"image_size", "stride"} <= model["config"].keys():
        raise TypeError("a value that no index has")
    return record


def _typed(kind: type, values: dict[str, Any]) -> Any:
    """Fill a record from JSON.

    Raises:
        TypeError: A value is missing, surplus, or not of the type that its field has.
    """
    made = kind(**values)
    for field in dataclasses.fields(kind):
        value = getattr(made, field.name)
        union = isinstance(field.type, types.UnionType)
        kinds = typing.get_args(field.type) if union else (field.type,)
        plain = tuple(typing.get_origin(each) or each for each in kinds)
        if not isinstance(value, plain) or isinstance(value, bool):
            raise TypeError(f"{field.name} is a {type(value).__name__}")
    return made


def write_record(folder: Path, record: IndexRecord) -> None:
    """Replace index.json in one step, then update the list of bad files."""
    values = files.valid_json({"version": VERSION, **dataclasses.asdict(record)})
    values["sha256"] = _digest(values)
    files.write_json(folder / RECORD, values)
    rows = [(bad.file, bad.reason) for bad in record.bad]
    files.write_table(folder / BAD_LIST, ("file", "reason"), rows)


def sweep(folder: Path, record: IndexRecord) -> None:
    """Delete what the record does not name: leftovers of replaced or killed writes."""
    named = {f"{shard.name}.safetensors" for shard in record.shards}
    named |= {record.faiss.file} if record.faiss else set()
    for entry in [*(folder / SHARDS).glob("*.safetensors*"), *folder.glob("*.faiss*")]:
        if entry.name not in named:
            entry.unlink()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the index for one writer; readers need no lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SearchError(
                f"another process is writing to the index {folder}; wait for it"
            ) from error
        yield


def keep_tokenizer(folder: Path, name: str) -> None:
    """Copy a tokenizer into the index, unless it is "clip", which needs no files."""
    if name == "clip":
        return
    target, content = folder / TOKENIZER, _tokenizer(Path(name))
    if not target.is_dir():
        with files.replacing(target) as draft:
            draft.mkdir()
            for file, data in content.items():
                (draft / file).write_bytes(data)
    elif content != _tokenizer(target):
        raise SearchError(
            f"{folder} was begun with another tokenizer than {name}; choose "
            "another --out"
        )


def _tokenizer(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in table_files(folder)}
