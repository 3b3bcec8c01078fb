# SPDX-License-Identifier: Apache-2.0
"""What runs and indexes keep about themselves: content -> message."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.synthetic import recorded_options
from fmfa_jax.evaluation.tables import Table, read_table
from fmfa_jax.figures import curves
from fmfa_jax.run import manifests
from fmfa_jax.search import shards, store
from fmfa_jax.search.store import SearchError
from tests.bad_inputs.programs import safetensors
from tests.bad_inputs.table import Reader

DEEP = b"[" * 10**5
DIGITS = b"9" * 5000


def encoded(content: Any) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


# Manifests of checkpoints.
FILE = {"bytes": 4, "sha256": "0" * 64}
BODY = {"step": 3, "identity": {}, "arrays": {}, "files": {}, "told": {}}


def sealed(**changes: Any) -> dict[str, Any]:
    body = {key: v for key, v in (BODY | changes).items() if v is not ...}
    return {"sha256": manifests._digest_of(body), "body": body}


def verify(folder: Path, content: Any) -> object:
    step = folder / "3"
    step.mkdir()
    if content is not None:
        (step / "manifest.json").write_bytes(encoded(content))
    return manifests.verify(step)


FORM = "manifest.json does not have the form of one"
MANIFESTS = [
    (None, "it has no manifest.json: the save did not finish"),
    (b"", "manifest.json is unreadable"),
    (b"{", "manifest.json is unreadable"),
    (b"\xff", "manifest.json is unreadable: 'utf-8' codec"),
    (DEEP, "manifest.json is unreadable: its values are nested too deep"),
    (DIGITS, "manifest.json is unreadable: Exceeds the limit"),
    (b" " * (8 * 2**20 + 1), "wanted at most 8388608 bytes"),
    ([], "manifest.json is unreadable"),
    ({}, "manifest.json is unreadable: 'body'"),
    ({"body": BODY}, "manifest.json is unreadable: 'sha256'"),
    ({"body": BODY, "sha256": "0"}, "does not match its own SHA-256"),
    (sealed(step=...), FORM),
    (sealed(step="3"), FORM),
    (sealed(step=True), FORM),
    (sealed(files=[]), FORM),
    (sealed(arrays={"w": 1}), FORM),
    (sealed(more=1), FORM),
    (sealed(files={"a": 5}), FORM),
    (sealed(files={"a": {"bytes": 1}}), FORM),
    (sealed(files={"a": {"bytes": "1", "sha256": ""}}), FORM),
    (sealed(files={"a": FILE}), "a is missing"),
    (sealed(files={"../x": FILE}), "../x is missing"),
    (sealed(files={"\x1b[2J": FILE}), r"\x1b[2J is missing"),
    (sealed(files={f"{i}": FILE for i in range(9)}), "0, and 8 more, is missing"),
    (sealed(step=4), "it was saved as step 4: its folder was renamed or copied"),
]

# Indexes of galleries.
RECORD = store.IndexRecord(
    gallery="/gallery",
    model=store.ModelRecord("/m", "0" * 64, {"image_size": [4, 2], "stride": 1}, None),
    tokenizer="clip",
    preprocessing=store.PREPROCESSING,
    storage="float32",
    engine="exact",
    shards=(store.ShardRecord("1", 2),),
)
STAMPS = tuple(shards.Stamp(f"{name}.jpg", 1, 2) for name in "ab")
PART = shards.Part(np.eye(2, 4, dtype=np.float32), STAMPS)


def write_index(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    store.write_record(folder, RECORD)
    shards.write_shard(shards.shard_path(folder, "1"), PART, "float32")


def read_index(folder: Path, content: Any) -> object:
    write_index(folder)
    record = folder / "index.json"
    if callable(content):
        values = json.loads(record.read_text())
        content(values)
        # Whoever changes a value can sign it, too.
        del values["sha256"]
        content = values | {"sha256": store._digest(values)}
    if content is None:
        record.unlink()
    else:
        record.write_bytes(encoded(content))
    found = store.read_record(folder)
    return [each.stamps() for each in shards.open_shards(folder, found)]


def put(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values.update(changes)


def lacks(*keys: str) -> Callable[[dict[str, Any]], None]:
    return lambda values: [values.pop(key) for key in keys] and None


def model(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values["model"].update(changes)


WRONG = "lacks an entry or has a wrong one"
INDEXES = [
    (None, "no index at"),
    (b"", "is damaged"),
    (b"{", "is damaged"),
    (b"\xff", "is damaged ('utf-8' codec"),
    (DEEP, "is damaged (its values are nested too deep"),
    (DIGITS, "is damaged (Exceeds the limit"),
    (b"[]", "has version None, this code reads"),
    (b"null", "has version None, this code reads"),
    (b"{}", "has version None, this code reads"),
    (put(version=1), "has version 1, this code reads"),
    (put(version="x" * 10**5), "has version xxx"),
    (put(version="\x1b[2J"), r"has version \x1b[2J, this code"),
    (put(more=1), WRONG),
    (put(gallery=5), WRONG),
    (put(gallery=None), WRONG),
    (put(storage="float64"), WRONG),
    (put(storage=["float32"]), WRONG),
    (put(engine="magic"), WRONG),
    (put(tokenizer=1), WRONG),
    (put(preprocessing=None), WRONG),
    (put(shards=5), WRONG),
    (put(shards=[5]), WRONG),
    (put(shards=[{"name": "1"}]), WRONG),
    (put(shards=[{"name": "1", "rows": "2"}]), WRONG),
    (put(shards=[{"name": "1", "rows": True}]), WRONG),
    (put(shards=[{"name": 1, "rows": 2}]), WRONG),
    (put(shards=[{"name": "../one", "rows": 2}]), WRONG),
    (put(shards=[{"name": "/etc/one", "rows": 2}]), WRONG),
    (put(shards=[{"name": "", "rows": 2}]), WRONG),
    (put(shards=[{"name": "2", "rows": 2}]), "2.safetensors is missing or damaged"),
    (
        put(shards=[{"name": "1", "rows": 3}]),
        "float32, 3 of float32 wanted",
    ),
    (put(storage="float16"), "2 rows of float32, 2 of float16 wanted"),
    (put(bad=[1]), WRONG),
    (put(bad=[{"file": 1, "size": 1, "mtime_ns": 1, "reason": "x"}]), WRONG),
    (put(bad=[{"file": "a", "size": "1", "mtime_ns": 1, "reason": "x"}]), WRONG),
    (put(bad=None), WRONG),
    (put(excluded=5), WRONG),
    (put(excluded=[5]), WRONG),
    (put(excluded="abc"), WRONG),
    (put(faiss=5), WRONG),
    (put(remote=5), WRONG),
    (put(remote={"uri": 5, "collection": "x"}), WRONG),
    (put(remote={"uri": "http://h", "collection": "x", "effort": "1"}), WRONG),
    (put(faiss={"file": "x"}), WRONG),
    (put(faiss={"file": "../x", "probes": 1, "recall": 1.0, "checksum": ""}), WRONG),
    (put(faiss={"file": "x", "probes": "1", "recall": 1.0, "checksum": ""}), WRONG),
    (put(model=None), WRONG),
    (model(path=5), WRONG),
    (model(sha256=5), WRONG),
    (model(config=[]), WRONG),
    (model(config={}), WRONG),
    (model(source_grid=5), WRONG),
    (model(source_grid=["a", "b"]), WRONG),
    (model(more=1), WRONG),
    (lacks("gallery"), WRONG),
    (lacks("model"), WRONG),
    (lacks("shards", "faiss"), WRONG),
]


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def shard(stops: tuple[int, int] = (5, 10), /, **changes: Any) -> bytes:
    header = {
        "__metadata__": {"checksum": "0"},
        "rows": entry("F32", [2, 4], 0, 32),
        "ends": entry("I64", [2], 32, 48),
        "sizes": entry("I64", [2], 48, 64),
        "mtimes": entry("I64", [2], 64, 80),
        "names": entry("U8", [10], 80, 90),
    }
    header = {key: v for key, v in (header | changes).items() if v is not None}
    data = bytes(32) + np.array(stops, np.int64).tobytes() + bytes(32) + b"a.jpgb.jpg"
    return safetensors(header, data)


def read_shard(folder: Path, content: bytes) -> object:
    path = folder / "one.safetensors"
    path.write_bytes(content)
    return shards.open_shard(path).stamps()


FIT = "its tensors do not fit each other"
SHARDS = [
    (b"", "is missing or damaged"),
    (shard()[:-1], "truncated or damaged"),
    (shard(__metadata__=None), "no 'checksum'"),
    (shard(rows=entry("F32", [4, 2], 0, 32)), FIT),
    (shard(rows=entry("F32", [8], 0, 32)), FIT),
    (shard(rows=entry("I32", [2, 4], 0, 32)), FIT),
    (shard(ends=entry("F64", [2], 32, 48)), FIT),
    (shard(ends=entry("I64", [1, 2], 32, 48)), FIT),
    (shard(names=entry("I8", [10], 80, 90)), FIT),
    (shard(ends=None, end=entry("I64", [2], 32, 48)), "no 'ends'"),
    (shard((5, 11)), "its names do not end where they should"),
    (shard((10, 5)), "its names do not end where they should"),
    (shard((-5, 10)), "its names do not end where they should"),
]

# What a run measured, and who was drawn.
GOOD = dataclasses.asdict(Table("t", ("a",), ("R1",), (("x", 1.0),)))


def read_tables(folder: Path, content: Any) -> object:
    (folder / "table.json").write_bytes(encoded(content))
    return read_table(folder / "table.json")


THING = "wanted a table that a protocol wrote"
TABLES = [
    (content, THING)
    for content in (
        *(b"", b"{", b"\xff", DEEP, DIGITS, [], None, 5, "x", {}),
        *(GOOD | {"rows": 5}, GOOD | {"rows": [5]}, GOOD | {"rows": [["x"]]}),
        *(GOOD | {"rows": [["x", []]]}, GOOD | {"rows": [["x", {}]]}),
        *(GOOD | {"labels": 5}, GOOD | {"labels": [5]}, GOOD | {"title": 5}),
        *(GOOD | {"notes": [[]]}, GOOD | {"more": 1}),
    )
]


def read_metrics(folder: Path, content: bytes) -> object:
    (folder / "metrics.jsonl").write_bytes(content)
    return curves.write_curves(folder / "metrics.jsonl", folder / "c.png")


STEP = b'{"step": 1, "epoch": 1}\n'
METRICS = [
    (b"", "has no record yet: nothing to plot"),
    (b"{", "has no record yet: nothing to plot"),
    (b"{\n", "line 1: expected a JSON object with a step, got {"),
    (b"\r\x1b[2J\n" + STEP, r"line 1: expected a JSON object with a step, got \r\x1b"),
    (b"none\n" + STEP, "line 1: expected a JSON object with a step, got none"),
    (STEP + b"[]\n" + STEP, "line 2: expected a JSON object with a step, got []"),
    (b"{}\n" + STEP, "line 1: expected a JSON object with a step, got {}"),
    (b'{"step": "1"}\n' + STEP, "line 1: expected a JSON object with a step"),
    (b"\xff\n" + STEP, "line 1: expected a JSON object with a step"),
    (b"\x1b[2J\n" + STEP, r"with a step, got \x1b[2J"),
    (DEEP + b"\n" + STEP, "line 1: expected a JSON object with a step, got [[["),
    (DIGITS + b"\n" + STEP, "line 1: expected a JSON object with a step, got 999"),
]


def read_losses(folder: Path, content: Any) -> object:
    (folder / "config.json").write_bytes(encoded(content))
    return curves.read_losses(folder / "config.json")


LOSSES = [
    ([], "config.json: wanted the config of a run"),
    (5, "config.json: wanted the config of a run"),
    (b"{", "config.json: wanted the config of a run"),
    (DEEP, "config.json: wanted the config of a run"),
]


def read_people(folder: Path, content: Any) -> object:
    (folder / "population.json").write_bytes(encoded(content))
    return recorded_options(folder)


PEOPLE = [
    (b"", "population.json: wanted a JSON file"),
    (DEEP, "population.json: wanted a JSON file, got: its values are nested too deep"),
    ([], "population.json: wanted an object with the options"),
    ({}, "wanted people drawn by edition 2, got None"),
    ({"edition": 1}, "wanted people drawn by edition 2, got 1"),
    ({"edition": [["x"]]}, "wanted people drawn by edition 2, got"),
    ({"edition": 2}, "wanted the options identities, images_per_identity, seed"),
]

READERS = [
    Reader("manifests", verify, manifests.CorruptCheckpointError, MANIFESTS),
    Reader("indexes", read_index, SearchError, INDEXES),
    Reader("shards", read_shard, SearchError, SHARDS),
    Reader("tables", read_tables, ValueError, TABLES),
    Reader("metrics.jsonl", read_metrics, ValueError, METRICS),
    Reader("config.json", read_losses, ValueError, LOSSES),
    Reader("population.json", read_people, ValueError, PEOPLE),
]
