# SPDX-License-Identifier: Apache-2.0
"""Annotations: content -> message. What is no bytes is written as JSON."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.datasets import AnnotationError, DatasetMissing, open_dataset
from tests.bad_inputs.table import Reader

WRONG = (AnnotationError, DatasetMissing)


def entry(**changes: Any) -> list[dict[str, Any]]:
    good = {"split": "train", "id": 1, "file_path": "1.jpg", "captions": ["a man"]}
    return [{key: v for key, v in (good | changes).items() if v is not ...}]


def encoded(content: Any) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


def read_layout(folder: Path, content: Any) -> object:
    """CUHK-PEDES, whose reader all published data sets share."""
    (folder / "CUHK-PEDES" / "imgs").mkdir(parents=True)
    (folder / "CUHK-PEDES" / "reid_raw.json").write_bytes(encoded(content))
    return open_dataset("cuhk_pedes", str(folder))


DEEP = b"[" * 900 + b"]" * 900
LIST = "wanted a JSON list with at least one entry, got"
INSIDE = "field 'file_path': wanted a relative path inside the image folder"
SPLIT = "field 'split': wanted train, val or test"
PERSON = "field 'id': wanted a whole number from 0 to 2147483647, or null, got"
TEXTS = "field 'captions': wanted a list of texts"
LAYOUT = [
    (b"", "reid_raw.json: wanted a JSON file"),
    (b"[", "wanted a JSON file, got: Expecting value"),
    (b"null", f"{LIST} NoneType None"),
    ({}, f"{LIST} dict {{}}"),
    ([], f"{LIST} list []"),
    ([1], "entry 0: wanted an object with fields, got int 1"),
    ([*entry(), "x"], "entry 1: wanted an object with fields, got str 'x'"),
    (json.dumps(entry()).encode("utf-16"), "'utf-8' codec can't decode"),
    (b'[{"split":"\xe9"}]', "'utf-8' codec can't decode byte 0xe9"),
    (b"[" * 10**5, "its values are nested too deep"),
    (b"[" + b"9" * 5000 + b"]", "wanted a JSON file, got: Exceeds the limit"),
    (b'[{"id":%s}]' % (b"9" * 5000), "wanted a JSON file, got: Exceeds the limit"),
    (entry(split=...), "field 'split': wanted train, val or test (caption_all.json"),
    (entry(split="dev"), f"{SPLIT}, got str 'dev'"),
    (entry(split=""), f"{SPLIT}, got str ''"),
    (entry(split=3), "field 'split': wanted a text, got int 3"),
    (entry(split=None), "field 'split': wanted a text, got NoneType"),
    (entry(split=["train"]), "field 'split': wanted a text, got list"),
    (entry(split="x" * 10**6), f"{SPLIT}, got str 'xxx"),
    (entry(id=...), "field 'id': wanted a person's number, or null, got no such field"),
    (entry(id=-1), f"{PERSON} int -1"),
    (entry(id=2**31), f"{PERSON} int 2147483648"),
    (entry(id=10**30), f"{PERSON} int"),
    (entry(id=1.5), f"{PERSON} float 1.5"),
    (entry(id=float("inf")), f"{PERSON} float inf"),
    (entry(id=True), f"{PERSON} bool True"),
    (entry(id="٣"), f"{PERSON} str '٣'"),
    (entry(id="one"), f"{PERSON} str 'one'"),
    (entry(id=[1]), f"{PERSON} list [1]"),
    (entry(id={"a": 1}), f"{PERSON} dict"),
    (entry(id="\ud800"), rf"{PERSON} str '\ud800'"),
    (entry(id="1" * 10**6), f"{PERSON} str '111"),
    (
        b'[{"split":"train","file_path":"1.jpg","captions":[],"id":%s}]' % DEEP,
        f"{PERSON} list [[[",
    ),
    (entry(file_path=...), "field 'file_path': wanted a text, got no such field"),
    (entry(file_path=5), "field 'file_path': wanted a text, got int 5"),
    (entry(file_path=""), INSIDE),
    (entry(file_path="."), INSIDE),
    (entry(file_path="  "), INSIDE),
    (entry(file_path="../1.jpg"), INSIDE),
    (entry(file_path="a/../../x"), INSIDE),
    (entry(file_path="..\\1.jpg"), INSIDE),
    (entry(file_path="/etc/passwd"), INSIDE),
    (entry(file_path="C:\\x.jpg"), INSIDE),
    (entry(file_path="a\0b"), INSIDE),
    (entry(file_path="\udcff.jpg"), "field 'file_path': wanted a text"),
    (entry(file_path="é/" + "a/" * 10**5), "wanted a path of at most 4096 letters"),
    (entry(captions=...), f"{TEXTS}, got no such field"),
    (entry(captions="a man"), f"{TEXTS}, got str 'a man'"),
    (entry(captions=None), f"{TEXTS}, got NoneType"),
    (entry(captions={}), f"{TEXTS}, got dict"),
    (entry(captions=[1]), f"{TEXTS}, got list [1]"),
    (entry(captions=["a", None]), f"{TEXTS}, got list ['a', None]"),
    (entry(captions=["\ud800"]), rf"{TEXTS}, got list ['\ud800']"),
    (entry(captions=[["a"]]), f"{TEXTS}, got list [['a']]"),
    (entry() + entry(id=2), "entry 1, field 'id': wanted 1 as entry 0 says of this"),
    (entry() + entry(split="test"), "wanted 'train' as entry 0 says of this file"),
    (
        entry(split="test", id=2**31 - 1) + entry(split="test", id=None, file_path="2"),
        "leaves no numbers for the unknown ones",
    ),
]


def read_folder(folder: Path, content: Any) -> object:
    (folder / "captions.jsonl").write_bytes(encoded(content))
    return open_dataset("folder", str(folder))


def line(**changes: Any) -> bytes:
    good = {"file": "1.jpg", "captions": ["a man"]}
    whole = {key: v for key, v in (good | changes).items() if v is not ...}
    return json.dumps(whole).encode() + b"\n"


FOLDER = [
    (b"", "captions.jsonl: wanted at least one line, got an empty file"),
    (b"\n\n \n", "wanted at least one line, got an empty file"),
    (b"a\n", "line 1: wanted one JSON object, got: Expecting value"),
    (line() + b"{\n", "line 2: wanted one JSON object, got"),
    (line() + b"\xff\n", "captions.jsonl: wanted UTF-8, got"),
    (line().decode().encode("utf-16"), "captions.jsonl: wanted UTF-8, got"),
    (b"9" * 5000 + b"\n", "line 1: wanted one JSON object, got: Exceeds the limit"),
    (b"[" * 10**5, "line 1: wanted one JSON object, got"),
    (b"[]\n", "line 1: wanted an object with fields, got list []"),
    (b"null\n", "line 1: wanted an object with fields, got NoneType None"),
    (line()[:-2] + b",}\n", "line 1: wanted one JSON object, got"),
    (line()[:-1] * 2, "line 1: wanted one JSON object, got: Extra data"),
    (line(file=...), "line 1, field 'file': wanted a text, got no such field"),
    (line(file="."), "field 'file': wanted a relative path inside"),
    (line(file="a\n/../b"), "field 'file': wanted a relative path inside"),
    (line(file="\x1b[2J/../x"), r"got str '\x1b[2J/../x'"),
    (line(file=["1.jpg"]), "field 'file': wanted a text, got list"),
    (line(captions=...), "field 'captions': wanted a list of texts"),
    (line(captions=None), "field 'captions': wanted a list of texts"),
    (line(captions={}), "field 'captions': wanted a list of texts, got dict"),
    (line(captions=5), "field 'captions': wanted a list of texts, got int"),
    (line(captions="\udfff"), r"field 'captions': wanted a text, got str '\udfff'"),
    (line(split=[]), "field 'split': wanted a text, got list"),
    (line(split="dev"), "field 'split': wanted train, val or test, got str 'dev'"),
    (line(person=1.5), "field 'person': wanted a text or a whole number, got float"),
    (line(person=True), "field 'person': wanted a text or a whole number, got bool"),
    (line(person=[1]), "field 'person': wanted a text or a whole number, got list"),
    (line(person="\ud800"), "field 'person': wanted a text or a whole number, got str"),
    (
        line(person="e" + "\u0316\u0301" * 10**5),
        "field 'person': wanted at most 1000 letters",
    ),
    (line() + line(person="b"), "line 2, field 'person': wanted None as line 1 says"),
    (line() + line(split="test"), "field 'split': wanted 'train' as line 1 says"),
]


def named(_: Path, given: tuple[str, dict[str, Any]]) -> object:
    name, options = given
    return open_dataset(name, "/nowhere", **options)


NAMES = [
    (("cuhk", {}), "data set='cuhk' is not known; did you mean cuhk_pedes"),
    (("", {}), "data set='' is not known"),
    (("tfds:synthetic", {}), "data set='tfds:synthetic' is not known"),
    (("folder", {"test_shar": 0.1}), "option='test_shar' is not known; did you mean"),
    (("cuhk_pedes", {"test_share": 0.1}), "data set 'cuhk_pedes': option='test_share'"),
    (("cuhk_pedes", {}), "CUHK-PEDES is not under '/nowhere'. Looked for"),
    (("folder", {}), "no folder data set at '/nowhere'. Looked for"),
    (("tfds:cuhk_pedes", {}), "cuhk_pedes is not prepared under '/nowhere'"),
]


def shared(folder: Path, given: tuple[bytes, float, float]) -> object:
    content, test_share, people = given
    (folder / "captions.jsonl").write_bytes(content)
    return open_dataset("folder", str(folder), people=people, test_share=test_share)


SHARES = [
    ((line(), 0.0, 0.0), "data.people=0.0: wanted a share in (0, 1]"),
    ((line(), 0.0, 1.5), "data.people=1.5: wanted a share in (0, 1]"),
    ((line(), 0.0, float("nan")), "data.people=nan: wanted a share in (0, 1]"),
    ((line(), 1.0, 1.0), "option test_share=1.0: wanted more than 0, below 1"),
    ((line(), -0.1, 1.0), "option test_share=-0.1: wanted more than 0, below 1"),
    ((line(split="val"), 0.5, 1.0), "got lines in val: leave test_share out"),
]

READERS = [
    Reader("annotations", read_layout, WRONG, LAYOUT),
    Reader("captions.jsonl", read_folder, WRONG, FOLDER),
    Reader("data sets", named, (ValueError, DatasetMissing), NAMES),
    Reader("shares", shared, ValueError, SHARES),
]
