# SPDX-License-Identifier: Apache-2.0
"""Exact search beside a sort of all cosines, on shards that lie on the disk."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from fmfa_jax.search import exact, shards
from fmfa_jax.search.approximate import ApproximateSearch, build
from fmfa_jax.search.store import SearchError

WIDTH = 64


def unit(rng, count):
    rows = rng.standard_normal((count, WIDTH)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(folder, rows, storage, sizes):
    """Write rows as shards of these sizes; returns them as opened again."""
    opened, first = [], 0
    for number, size in enumerate(sizes):
        stamps = tuple(
            shards.Stamp(f"{i}.jpg", i, i) for i in range(first, first + size)
        )
        part = shards.Part(rows[first : first + size], stamps)
        shards.write_shard(folder / str(number), part, storage)
        opened.append(shards.open_shard(folder / str(number)))
        first += size
    return opened


def oracle(query, rows, top, minimum=-2.0):
    cosines = rows.astype(np.float64) @ query
    order = np.lexsort((np.arange(len(rows)), -cosines))
    order = order[cosines[order] >= minimum]
    return order[:top], cosines


@pytest.mark.parametrize("storage", ["float32", "int16", "int8"])
def test_the_nearest_are_those_of_a_full_sort(tmp_path, storage):
    rng = np.random.default_rng(0)
    # More than a block with a rest, exactly one block, one row.
    sizes = [2 * exact.BLOCK + 300, exact.BLOCK, 1]
    opened = write(tmp_path, unit(rng, sum(sizes)), storage, sizes)
    kept = np.concatenate([shard.unit(slice(None)) for shard in opened])
    assert opened[0].rows.dtype == (np.float32 if storage == "float32" else np.int16)
    assert (opened[0].codes is not None) == (storage == "int8")
    find = exact.ExactSearch(opened)
    for query in unit(rng, 4):
        wanted, cosines = oracle(query, kept, 25)
        found = find(query, 25)
        assert found.rows.tolist() == wanted.tolist()
        np.testing.assert_allclose(found.similarity, cosines[wanted], atol=1e-6)
        slack = 5e-3 if storage == "int8" else 1e-6
        assert found.lowest == pytest.approx(cosines.min(), abs=slack)
        assert found.highest == pytest.approx(cosines.max(), abs=1e-6)


def test_a_wanted_similarity_cuts_and_counts(tmp_path):
    rng = np.random.default_rng(1)
    rows = unit(rng, 500)
    find = exact.ExactSearch(write(tmp_path, rows, "float32", [300, 200]))
    query = unit(rng, 1)[0]
    wanted, cosines = oracle(query, rows, 10, 0.2)
    found = find(query, 10, minimum=0.2)
    assert found.rows.tolist() == wanted.tolist()
    assert found.matches == (cosines >= 0.2).sum() > 10
    assert len(find(query, 10, minimum=0.999).rows) == 0
    assert len(find(query, 1000).rows) == 500


def test_among_equals_the_lower_number_comes_first(tmp_path):
    rows = np.tile(unit(np.random.default_rng(2), 3), (40, 1))
    find = exact.ExactSearch(write(tmp_path, rows, "float32", [50, 50, 20]))
    # Row 1 of each three; a vector's product with equal rows is equal.
    found = find(rows[1], 7)
    assert found.rows.tolist() == [1, 4, 7, 10, 13, 16, 19]


def test_rows_are_not_copied_when_a_gallery_opens(tmp_path):
    opened = write(tmp_path, unit(np.random.default_rng(3), 64), "int16", [64])
    find = exact.ExactSearch(opened)
    address = opened[0].rows.__array_interface__["data"][0]
    assert find._blocks[0].unsafe_buffer_pointer() == address


def test_what_is_kept_is_within_half_a_step(tmp_path):
    rows = unit(np.random.default_rng(4), 5000)
    rows[7] = 0
    (shard,) = write(tmp_path, rows, "int8", [5000])
    assert np.abs(shard.rows).max(1)[:7].tolist() == [32767] * 7
    assert np.abs(shard.codes).max(1)[:8].tolist() == [127] * 7 + [0]
    steps = shard.scales[:, None]
    assert (np.abs(shard.unit(slice(None)) - rows) <= 0.51 * steps).all()
    coded = shards.CODE_STEP * shard.codes.astype(np.float32) * steps
    assert (np.abs(coded - rows) <= 0.51 * shards.CODE_STEP * steps).all()
    chosen = np.array([4, 2])
    np.testing.assert_array_equal(shard.unit(chosen), shard.unit(slice(None))[chosen])
    # Writing what was read changes nothing: removals may come as often as they like.
    again = shards.quantize(shard.unit(slice(None)))[0]
    np.testing.assert_array_equal(again, shard.rows)


def test_parts_are_packed_in_order_and_lose_nothing():
    rows = np.arange(23, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    stamps = [shards.Stamp(f"{i}", i, i) for i in range(23)]
    cuts = [0, 3, 3, 11, 12, 23]
    parts = [
        shards.Part(rows[a:b], tuple(stamps[a:b])) for a, b in itertools.pairwise(cuts)
    ]
    packed = list(shards.packed(iter(parts), rows=5))
    assert [len(part.rows) for part in packed] == [5, 5, 5, 5, 3]
    assert [s for part in packed for s in part.stamps] == stamps
    np.testing.assert_array_equal(np.concatenate([p.rows for p in packed]), rows)


def test_a_shard_gives_its_files_back_whatever_their_names(tmp_path):
    names = ["a b.jpg", "ü/é\n.jpg", b"\xff\xfe.jpg".decode("utf-8", "surrogateescape")]
    stamps = tuple(shards.Stamp(name, i, 10**18 + i) for i, name in enumerate(names))
    part = shards.Part(np.eye(3, dtype=np.float32), stamps)
    shards.write_shard(tmp_path / "0", part, "float32")
    opened = shards.open_shard(tmp_path / "0")
    assert opened.stamps() == list(stamps)
    assert [opened.stamp(row) for row in range(3)] == list(stamps)


@pytest.mark.parametrize("file", ["rows.npy", "table.npy", "names.bin"])
def test_a_damaged_shard_is_told(tmp_path, file):
    write(tmp_path, unit(np.random.default_rng(5), 20), "float32", [20])
    path = tmp_path / "0" / file
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SearchError, match="shard"):
        shards.open_shard(tmp_path / "0")


def test_faiss_reaches_the_recall_it_states(tmp_path, encoder):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(6)
    rows = unit(rng, 2000)
    opened = write(tmp_path, rows, "float32", [1500, 500])
    record = build(tmp_path, "x.faiss", opened, encoder)
    assert record.recall >= 0.99
    find = ApproximateSearch(tmp_path, record)
    hits = 0
    for query in rows[::50]:
        hits += len({*find(query, 10).rows} & {*oracle(query, rows, 10)[0]})
    assert hits / 400 > 0.95
    found = find(rows[3], 10, minimum=0.9)
    assert found.rows.tolist() == [3] and found.matches == 1


def test_without_faiss_the_error_names_the_command(monkeypatch, tmp_path, encoder):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SearchError, match="pip install faiss-cpu"):
        build(tmp_path, "x.faiss", [], encoder)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what it was told")
def test_only_the_rows_of_a_short_list_are_read_one_by_one(tmp_path):
    """The system otherwise reads megabytes around each, and at last the whole file."""
    rows = unit(np.random.default_rng(0), 300)
    for storage, single in (("int8", {"rows.npy"}), ("int16", set())):
        opened = write(tmp_path / storage, rows, storage, [300])
        find = exact.ExactSearch(opened)
        assert find(rows[7], 1).rows.tolist() == [7]
        assert single_rows(tmp_path / storage) == single


def single_rows(folder):
    """Files below a folder whose mapping is read without looking ahead ("rr")."""
    found, name = set(), ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if str(folder) in line:
            name = line.rsplit("/", 1)[1]
        elif line.startswith("VmFlags:"):
            found |= {name} if name and "rr" in line.split() else set()
            name = ""
    return found
