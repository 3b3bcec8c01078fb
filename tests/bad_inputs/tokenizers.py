# SPDX-License-Identifier: Apache-2.0
"""Tokenizer folders: files by name -> message. What is no bytes is written as JSON."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.byte_pairs import END, START, WORD_END, byte_entries
from data_pipeline.tokenizer import open_tokenizer
from tests.bad_inputs.table import Reader

MERGES = ["a b", "ab c</w>"]
ENTRIES = [*byte_entries(), "ab", "abc</w>", START, END]
VOCABULARY = {entry: place for place, entry in enumerate(ENTRIES)}


def tables(vocabulary: Any = VOCABULARY, merges: Any = MERGES) -> dict[str, Any]:
    lines = "\n".join(["#version: 0.2", *merges, ""]) if type(merges) is list else ""
    return {
        "vocab.json": vocabulary,
        "merges.txt": lines.encode() if lines else merges,
    }


def joint(**changes: Any) -> dict[str, Any]:
    model = {"type": "BPE", "end_of_word_suffix": WORD_END, "vocab": VOCABULARY}
    return {"tokenizer.json": {"model": model | {"merges": MERGES} | changes}}


def added(tokens: Any) -> dict[str, Any]:
    whole = joint()
    whole["tokenizer.json"]["added_tokens"] = tokens
    return whole


def ids(**changes: Any) -> dict[str, Any]:
    return tables(VOCABULARY | changes)


DEEP = [[[[[[[[]]]]]]]]
NUMBERS = "wanted an object of entries with whole numbers"
ROWS = [
    ({}, "wanted 'clip' or a folder with vocab.json and merges.txt"),
    ({"vocab.json": VOCABULARY}, "merges.txt not found there"),
    ({"merges.txt": b""}, "vocab.json not found there"),
    (tables(b""), "vocab.json: wanted a JSON file"),
    (tables(b"{"), "vocab.json: wanted a JSON file"),
    (
        tables(b"[" * 10**5),
        "vocab.json: wanted a JSON file, got: its values",
    ),
    (tables(b'{"a":%s}' % (b"9" * 5000)), "wanted a JSON file, got: Exceeds"),
    (tables("{}".encode("utf-16")), "vocab.json: wanted a JSON file, got: 'utf-8'"),
    (tables([]), NUMBERS),
    (tables(list(VOCABULARY)), NUMBERS),
    (tables(None), NUMBERS),
    (ids(a="0"), NUMBERS),
    (ids(a=0.0), NUMBERS),
    (ids(a=None), NUMBERS),
    (ids(a=True), NUMBERS),
    (ids(a=[0]), NUMBERS),
    (ids(a=-1), "its 516 ids are not 0 to 515"),
    (ids(a=1), "its 516 ids are not 0 to 515"),
    (ids(a=10**30), "its 516 ids are not 0 to 515"),
    (tables({}), "wanted <|startoftext|> at -2"),
    (tables({START: 0, END: 1}), "lacks 512 of the 512 byte symbols"),
    (tables({END: 0, START: 1}), "wanted <|startoftext|> at 0"),
    (ids(**{END: 514, START: 515}), "wanted <|startoftext|> at 514"),
    (
        tables({("\x1b[2J" if e == "a" else e): i for e, i in VOCABULARY.items()}),
        "lacks 1 of the 512 byte symbols (a ...)",
    ),
    (tables(merges=b"\xff\xfe\x00"), "merges.txt: wanted UTF-8"),
    (tables(merges=b""), "entry 513 is 'abc</w>', wanted '<|mask|>' or the result"),
    (tables(merges=["a b c"]), "merge 0 is 'a b c', wanted two symbols"),
    (tables(merges=["a"]), "line 2: merge 0 is 'a', wanted two symbols"),
    (tables(merges=["a  b"]), "wanted two symbols separated by a space"),
    (tables(merges=["a b", "a b"]), "line 3: merge 1 is 'a b', which is there already"),
    (tables(merges=["zzq qqz"]), "'zzq' is not in the vocabulary"),
    (tables(merges=["a c"]), "'ac' is not in the vocabulary"),
    (tables(merges=["\x1b[2J b"]), r"'\\x1b[2J' is not in the vocabulary"),
    (tables(merges=["a" * 10**6 + " b"]), "is not in the vocabulary"),
    ({"tokenizer.json": b"{"}, "tokenizer.json: wanted a JSON file"),
    ({"tokenizer.json": []}, "wanted a CLIP tokenizer, byte pairs whose words end"),
    ({"tokenizer.json": {"model": []}}, "wanted a CLIP tokenizer"),
    (joint(type="Unigram"), "wanted a CLIP tokenizer"),
    (joint(end_of_word_suffix=None), "wanted a CLIP tokenizer"),
    (joint(vocab=[]), "wanted model.vocab, an object, and model.merges"),
    (joint(merges={}), "wanted model.vocab, an object, and model.merges"),
    (joint(merges=[5]), "merge 0 is '', wanted two symbols"),
    (joint(merges=[["a", 5]]), "merge 0 is '', wanted two symbols"),
    (joint(merges=[DEEP]), "merge 0 is '', wanted two symbols"),
    (joint(merges=[["a", "b", "c"]]), "merge 0 is 'a b c', wanted two symbols"),
    (added([5]), "wanted added_tokens to be a list of objects"),
    (added(5), "wanted added_tokens to be a list of objects"),
    (added({"a": {}}), "wanted added_tokens to be a list of objects"),
    (added([{"content": DEEP}]), "wanted added_tokens to be a list of objects"),
    (added([{"content": "<pad>", "id": "x"}]), NUMBERS),
    (added([{"content": "<pad>", "id": 516}]), "the last two entries; found"),
]


def read(folder: Path, files: dict[str, Any]) -> object:
    for name, content in files.items():
        raw = isinstance(content, bytes)
        (folder / name).write_bytes(content if raw else json.dumps(content).encode())
    return open_tokenizer(str(folder))


READERS = [Reader("tokenizers", read, (FileNotFoundError, ValueError), ROWS)]
