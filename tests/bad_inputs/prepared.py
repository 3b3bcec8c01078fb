# SPDX-License-Identifier: Apache-2.0
"""Folders that TFDS prepared: files of theirs, changed -> message."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.datasets import AnnotationError, open_dataset
from data_pipeline.datasets.tfds.__main__ import main as prepare
from tests.bad_inputs.table import Reader
from tests.data_pipeline.tiny_sets import write_lines

INFO, METADATA = "dataset_info.json", "metadata.json"
LINES = [
    {"file": f"{i}.png", "captions": ["a man"], "person": f"p{i}", "split": split}
    for i, split in enumerate(("train", "train", "test"))
]


@functools.cache
def good() -> Path:
    """A data_dir with three pictures, kept for the whole session."""
    root = Path(tempfile.mkdtemp())
    write_lines(root / "files", LINES)
    prepare(["folder", f"--manual_dir={root}/files", f"--data_dir={root}/out"])
    return root / "out"


def copy(folder: Path) -> Path:
    """Return the folder of the version in a copy."""
    shutil.copytree(good(), folder, dirs_exist_ok=True)
    return next(folder.glob("folder/*"))


Change = bytes | Callable[[Any], Any]


def read(folder: Path, given: tuple[str, Change]) -> object:
    name, change = given
    path = copy(folder) / name
    if callable(change):
        values = json.loads(path.read_text())
        change = json.dumps(change(values)).encode()
    path.write_bytes(change)
    data = open_dataset("tfds:folder", str(folder))
    return [split.read(i) for split in data.splits for i in range(len(split.images))]


def put(**changes: Any) -> Callable[[Any], Any]:
    return lambda values: values | changes


def first(place: int, value: Any) -> Callable[[Any], Any]:
    """Metadata whose first entry has another value in one of its four places."""

    def change(values: Any) -> Any:
        values["entries"][0][place] = value
        return values

    return change


def renamed(values: Any) -> Any:
    return values | {"entries": [["train", "x", 0, []] for _ in values["entries"]]}


PREPARED = "wanted what TFDS prepared, got"
ROWS = [
    ((INFO, b""), PREPARED),
    ((INFO, b"{"), PREPARED),
    ((INFO, b"\xff"), PREPARED),
    ((INFO, b"[" * 10**5), PREPARED),
    ((INFO, b"[]"), PREPARED),
    ((INFO, put(version="9.9.9")), PREPARED),
    ((INFO, put(fileFormat="exe")), "'exe' is not a valid FileFormat"),
    ((INFO, put(splits=5)), PREPARED),
    ((INFO, put(splits=[])), "wanted 2 records of split 'train'"),
    ((METADATA, b""), PREPARED),
    ((METADATA, b"{"), PREPARED),
    ((METADATA, b"[" * 10**5), PREPARED),
    ((METADATA, b"[]"), "wanted a list of entries"),
    ((METADATA, b"{}"), "metadata.json: wanted a list of entries: prepare it again"),
    ((METADATA, put(entries=5)), "wanted a list of entries"),
    ((METADATA, put(entries=[5])), "entry 0: wanted split, file, person, captions"),
    ((METADATA, put(entries=[[1, 2]])), "entry 0: wanted split, file, person"),
    ((METADATA, first(0, "dev")), "entry 0, field 'split': wanted train, val or test"),
    ((METADATA, first(0, 5)), "entry 0, field 'split': wanted a text, got int"),
    ((METADATA, first(1, "../x")), "entry 0, field 'file': wanted a relative path"),
    ((METADATA, first(1, None)), "entry 0, field 'file': wanted a text"),
    ((METADATA, first(2, "x")), "entry 0, field 'person': wanted a whole number"),
    ((METADATA, first(2, -2)), "entry 0, field 'person': wanted a whole number"),
    ((METADATA, first(2, None)), "field 'person': wanted a person's number, or -1"),
    ((METADATA, first(3, "abc")), "field 'captions': wanted a list of texts"),
    ((METADATA, first(3, [5])), "field 'captions': wanted a list of texts"),
    ((METADATA, first(2, 7)), "wanted person_names, a name of each person"),
    ((METADATA, put(person_names=["a"])), "wanted person_names, a name"),
    ((METADATA, put(person_names=5)), "wanted person_names, a name"),
    (
        (METADATA, put(person_names=[5, 6, 7])),
        "wanted person_names, a name",
    ),
    ((METADATA, put(fingerprint=None)), "wanted records with fingerprint None"),
    ((METADATA, put(fingerprint="x" * 10**5)), "wanted records with fingerprint xxx"),
    ((METADATA, renamed), "as metadata.json lists, got"),
]

READERS = [Reader("TFDS folders", read, (AnnotationError, OSError), ROWS)]
