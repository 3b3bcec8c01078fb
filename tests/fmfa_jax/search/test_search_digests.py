# SPDX-License-Identifier: Apache-2.0
"""Indexes that were damaged, and those from before they had digests."""

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data_pipeline.tokenizer import open_tokenizer
from fmfa_jax import search
from fmfa_jax.search import store
from fmfa_jax.search.__main__ import main
from fmfa_jax.search.store import SearchError
from tests.fmfa_jax.search.indexes import content, flipped, made_old, same


@pytest.fixture
def copy(index, tmp_path):
    return shutil.copytree(index, tmp_path / "copy.index")


def answer(folder, vector):
    """What a query finds, by file."""
    gallery = search.Gallery(folder)
    found = search.ExactSearch(gallery.shards)(vector, 10)
    return [(gallery.file(row), cosine) for _, row, cosine in found.hits()]


@pytest.mark.parametrize(("pattern", "flips"), [("index.json", 60), ("shards/*", 20)])
def test_a_flipped_bit_is_refused_by_queries_and_named(searcher, copy, pattern, flips):
    (path,) = copy.glob(pattern)
    sound, rng, refused = path.read_bytes(), random.Random(7), 0
    vector = searcher.vector("a man in a red jacket")
    wanted = answer(copy, vector)
    for _ in range(flips):
        flipped(path, rng)
        with pytest.raises(SearchError, match=path.name):
            search.verify(copy)
        try:
            assert answer(copy, vector) == wanted
        except SearchError as error:
            refused += path.name in str(error)
        path.unlink()
        path.write_bytes(sound)
    assert refused == flips
    assert search.verify(copy).rows == 24


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_flipped_bit_of_the_tokenizer_is_refused(copy, name):
    path = copy / "tokenizer" / name
    sound, rng, refused = path.read_bytes(), random.Random(7), 0
    wanted = open_tokenizer(str(path.parent)).fingerprint()
    for _ in range(20):
        flipped(path, rng)
        try:
            search.verify(copy)
            # Such as in a comment.
            assert open_tokenizer(str(path.parent)).fingerprint() == wanted
        except SearchError:
            refused += 1
        path.write_bytes(sound)
    assert refused > 15
    record = search.read_record(copy)
    broken = replace(record, tokenizer_sha256="0" * 64)
    with pytest.raises(SearchError, match=r"tokenizer .* is damaged or another one"):
        search.reopen_model(copy, broken)


def test_each_bad_shard_is_named(copy, capsys):
    (shard,) = (copy / "shards").iterdir()
    record = search.read_record(copy)
    first = record.shards[0]
    second = store.ShardRecord("00000009", first.rows, first.sha256)
    shutil.copy(shard, shard.with_name("00000009.safetensors"))
    both = replace(record, shards=(first, second))
    store.write_record(copy, both)
    assert main(["verify", str(copy)]) == 0
    said = capsys.readouterr()
    assert "2 shards of 48 pictures, all as they were written" in said.out
    flipped(shard, random.Random(0))
    shard.with_name("00000009.safetensors").unlink()
    assert main(["verify", str(copy)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("is missing or damaged") == 2


def test_bits_that_leave_the_sum_as_it_is_are_found_by_the_digest(copy, encoder):
    """One bit set and one cleared: the checksum of a query cannot tell."""
    (path,) = (copy / "shards").iterdir()
    data = bytearray(path.read_bytes())
    (shard,) = search.Gallery(copy).shards
    place = data.index(np.asarray(shard.rows)[0].tobytes())
    words = np.frombuffer(bytes(data[place : place + 1024]), np.uint64)
    first, other = next(
        (i, j)
        for i in range(128)
        for j in range(128)
        if words[i] & np.uint64(1) and not words[j] & np.uint64(1)
    )
    data[place + 8 * first] ^= 1
    data[place + 8 * other] ^= 1
    path.unlink()
    path.write_bytes(data)
    search.Gallery(copy).shards[0].check()
    for command in (search.verify, lambda c: search.add(c, encoder)):
        with pytest.raises(SearchError, match="another SHA-256"):
            command(copy)


def test_an_index_from_before_digests_opens_is_told_and_gets_them(
    gallery, encoder, tmp_path, counting, capsys
):
    out = tmp_path / "people.index"
    (gallery / "broken.jpg").write_bytes(b"no picture")
    search.index_gallery(gallery, out, encoder, batch_size=8)
    before = content(out)
    made_old(out)
    assert same(content(out), before)
    assert main(["query", str(out), "a man", "--top", "1"]) == 0
    assert (
        "no SHA-256 of 1 shard and its tokenizer; `add` notes"
        in capsys.readouterr().err
    )
    assert search.verify(out).undigested == 1
    counting.clear()
    assert search.add(out, encoder, batch_size=8).added == 0
    assert search.verify(out).undigested == 0 and not counting
    assert search.read_record(out).tokenizer_sha256 == encoder.tokenizer.fingerprint()
    # Its pictures are told apart by size and time, as then; new ones have all.
    Image.new("RGB", (30, 60), "red").save(gallery / "new.jpg")
    assert search.add(out, encoder, batch_size=8).added == 1
    after = content(out)
    assert same({file: after[file] for file in before}, before)
    assert json.loads((out / "index.json").read_text())["version"] == 3
