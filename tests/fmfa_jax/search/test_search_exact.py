# SPDX-License-Identifier: Apache-2.0
"""Exact search beside a sort of all cosines, on shards that lie on the disk."""

import itertools
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from fmfa_jax.search import exact, shards
from fmfa_jax.search.approximate import ApproximateSearch, build
from fmfa_jax.search.store import SearchError

WIDTH = 64


def unit(rng, count, width=WIDTH):
    rows = rng.standard_normal((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(folder, rows, storage, sizes):
    """Write rows as shards of these sizes; returns them as opened again."""
    opened, first = [], 0
    for number, size in enumerate(sizes):
        stamps = tuple(
            shards.Stamp(f"{i}.jpg", i, i) for i in range(first, first + size)
        )
        part = shards.Part(rows[first : first + size], stamps)
        path = folder / f"{number}.safetensors"
        shards.write_shard(path, part, storage)
        opened.append(shards.open_shard(path))
        first += size
    return opened


def oracle(query, rows, top, minimum=-2.0):
    cosines = rows.astype(np.float64) @ query
    order = np.lexsort((np.arange(len(rows)), -cosines))
    order = order[cosines[order] >= minimum]
    return order[:top], cosines


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_the_nearest_are_those_of_a_full_sort(tmp_path, storage):
    rng = np.random.default_rng(0)
    # The best of the first shards must not hide better ones in later ones.
    sizes = [4396, 20, 2048, 1]
    opened = write(tmp_path, unit(rng, sum(sizes)), storage, sizes)
    kept = np.concatenate([shard.unit(slice(None)) for shard in opened])
    assert opened[0].rows.dtype == storage
    find = exact.ExactSearch(opened)
    for query in unit(rng, 4):
        wanted, cosines = oracle(query, kept, 25)
        found = find(query, 25)
        assert found.rows.tolist() == wanted.tolist()
        np.testing.assert_allclose(found.similarity, cosines[wanted], atol=1e-6)
        assert found.lowest == pytest.approx(cosines.min(), abs=1e-6)
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


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("width", [512, 24, 7])
def test_among_equals_the_lower_number_comes_first(tmp_path, storage, width):
    """Wherever equal rows stand, their products are equal."""
    rng = np.random.default_rng(2)
    rows = np.tile(unit(rng, 1, width), (120, 1))
    find = exact.ExactSearch(write(tmp_path, rows, storage, [50, 1, 49, 20]))
    for query in unit(rng, 8, width):
        assert find(query, 7).rows.tolist() == [*range(7)]
        assert len(set(find(query, 120).similarity.tolist())) == 1


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("count", [1, 3, 64, 77])
def test_rows_are_not_copied_when_a_gallery_opens(tmp_path, storage, count):
    """Whatever the length of the header and of the names."""
    rows = unit(np.random.default_rng(3), count)
    opened = write(tmp_path, rows, storage, [count])
    find = exact.ExactSearch(opened)
    address = opened[0].rows.__array_interface__["data"][0]
    assert find._rows[0].unsafe_buffer_pointer() == address


def test_rows_are_kept_as_their_type_allows(tmp_path):
    rows = unit(np.random.default_rng(4), 5000)
    rows[7] = 0
    (shard,) = write(tmp_path / "float32", rows, "float32", [5000])
    np.testing.assert_array_equal(shard.unit(slice(None)), rows)
    (shard,) = write(tmp_path / "float16", rows, "float16", [5000])
    kept = shard.unit(slice(None))
    np.testing.assert_array_equal(kept, rows.astype(np.float16).astype(np.float32))
    chosen = np.array([4, 2])
    np.testing.assert_array_equal(shard.unit(chosen), kept[chosen])
    # Writing what was read changes nothing: removals may come as often as they like.
    (again,) = write(tmp_path / "again", kept, "float16", [5000])
    np.testing.assert_array_equal(again.rows, shard.rows)


def test_a_shard_is_a_safetensors_file(tmp_path):
    rows = unit(np.random.default_rng(4), 3)
    write(tmp_path, rows, "float16", [3])
    tensors = load_file(tmp_path / "0.safetensors")
    assert {name: str(each.dtype) for name, each in tensors.items()} == {
        "rows": "float16",
        "ends": "int64",
        "sizes": "int64",
        "mtimes": "int64",
        "names": "uint8",
        "ctimes": "int64",
        "digests": "uint8",
    }
    np.testing.assert_array_equal(tensors["rows"], rows.astype(np.float16))
    assert tensors["names"].tobytes() == b"0.jpg1.jpg2.jpg"
    assert tensors["ends"].tolist() == [5, 10, 15]


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
    shards.write_shard(tmp_path / "0.safetensors", part, "float32")
    opened = shards.open_shard(tmp_path / "0.safetensors")
    assert opened.stamps() == list(stamps)
    assert [opened.stamps(row, row + 1)[0] for row in range(3)] == list(stamps)


def test_a_shortened_shard_is_told(tmp_path):
    write(tmp_path, unit(np.random.default_rng(5), 20), "float32", [20])
    path = tmp_path / "0.safetensors"
    whole = path.read_bytes()
    for length in (*range(0, 700, 7), *range(700, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(SearchError, match="shard"):
            shards.open_shard(path)
    path.unlink()
    with pytest.raises(SearchError, match="shard"):
        shards.open_shard(path)


def test_no_flipped_bit_of_a_shard_gives_a_wrong_answer(tmp_path):
    rng = np.random.default_rng(5)
    rows = unit(rng, 20)
    (shard,) = write(tmp_path, rows, "float32", [20])
    wanted = exact.ExactSearch([shard])(rows[3], 20)
    files = shard.stamps()
    path = tmp_path / "0.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, 8 * header, 3)]
    places += rng.integers(8 * header, 8 * len(whole), 300).tolist()
    unnoticed = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            opened = shards.open_shard(path)
            found = exact.ExactSearch([opened])(rows[3], 20)
        except SearchError as error:
            assert "shard" in str(error)
            continue
        # Blanks of the header, for instance, mean nothing.
        unnoticed += 1
        assert place < 8 * header and opened.stamps() == files
        assert found.rows.tolist() == wanted.rows.tolist()
        np.testing.assert_array_equal(found.similarity, wanted.similarity)
    assert unnoticed < len(places) / 10


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
