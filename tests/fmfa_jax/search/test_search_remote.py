# SPDX-License-Identifier: Apache-2.0
"""An index that Qdrant searches: an embedded one, spoken to as a cluster is."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmfa_jax import search
from fmfa_jax.search import remote, writer
from fmfa_jax.search.approximate import recall
from fmfa_jax.search.remote import RemoteSearch
from fmfa_jax.search.store import SearchError
from tests.fmfa_jax.search.indexes import SMALL

pytest.importorskip("qdrant_client")
SENTENCES = ["a woman in a red skirt", "a man in a blue coat", "a green bag"]


@pytest.fixture
def index(gallery, encoder, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(remote, "_POINTS", 7)  # several requests
    monkeypatch.setattr(writer, "SHARD_ROWS", 10)  # several shards
    out = tmp_path / "index"
    change = search.index_gallery(
        gallery, out, encoder, engine="qdrant", uri=remote.EMBEDDED, **SMALL
    )
    assert change.remote.recall == 1 and len(search.read_record(out).shards) == 3
    return out


def found(index: Path, encoder: search.IndexModel, top: int = 10) -> list[list[int]]:
    """What is found for each sentence, with the similarity of exact search."""
    searcher = search.open_searcher(index)
    assert isinstance(searcher.find, RemoteSearch)
    exact = search.ExactSearch(searcher.gallery.shards)
    lists = []
    for vector in encoder.sentences(SENTENCES):
        ours, theirs = searcher.find(vector, top), exact(vector, top)
        np.testing.assert_allclose(ours.similarity, theirs.similarity, atol=1e-5)
        lists.append((ours.rows.tolist(), set(theirs.rows.tolist())))
    assert recall(*zip(*lists, strict=True)) == 1
    return [rows for rows, _ in lists]


def points(index: Path) -> int:
    made = search.read_record(index).remote
    return remote._client(made.uri).count(made.collection, exact=True).count


def test_qdrant_finds_what_exact_search_finds(index, encoder):
    assert points(index) == 24
    assert all(len(set(rows)) == 10 for rows in found(index, encoder))
    searcher = search.open_searcher(index)
    row = searcher.gallery.shards[0].unit(slice(0, 1))[0]
    few = searcher.find(row, 24, minimum=0.9)
    assert few.rows[0] == 0 and (few.similarity >= 0.9).all()
    assert few.matches == len(few.rows)
    assert search.verify(index).rows == 24


def test_it_follows_the_index(index, gallery, encoder):
    some = sorted(gallery.rglob("*.jpg"))
    search.remove(index, [some[0], some[13]])
    assert points(index) == 22
    found(index, encoder)
    Image.new("RGB", (30, 60), "green").save(gallery / "new.jpg")
    change = search.add(index, encoder, **SMALL)
    assert (change.added, points(index)) == (1, 23)
    found(index, encoder)
    assert search.verify(index).rows == 23


def test_a_crash_between_qdrant_and_the_index_leaves_the_old_one(
    index, gallery, encoder, monkeypatch
):
    """Its points are still there; the next writer deletes those of the lost commit."""
    before = found(index, encoder)

    def crash(*_):
        raise KeyboardInterrupt

    Image.new("RGB", (30, 60), "green").save(gallery / "new.jpg")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writer.store, "write_record", crash)
        search.add(index, encoder, **SMALL)
    assert points(index) > 24
    searcher = search.open_searcher(index)
    vectors = encoder.sentences(SENTENCES)
    ours = [searcher.find(vector, 24).rows.tolist() for vector in vectors]
    assert [rows[:3] for rows in ours] == [rows[:3] for rows in before]
    search.add(index, encoder, **SMALL)
    assert points(index) == 25
    found(index, encoder)


def test_lost_points_are_noticed(index, encoder):
    made = search.read_record(index).remote
    remote._client(made.uri).delete_collection(made.collection)
    with pytest.raises(SearchError, match="Qdrant at "):
        search.open_searcher(index).find(encoder.sentences(["a man"])[0], 3)
    with pytest.raises(SearchError, match="Qdrant at "):
        search.verify(index)


def test_a_uri_and_qdrant_belong_together(gallery, encoder, tmp_path):
    for wrong in ({"engine": "qdrant"}, {"uri": "http://h"}):
        with pytest.raises(SearchError, match="'qdrant', and no other, has a --uri"):
            search.index_gallery(gallery, tmp_path / "index", encoder, **wrong)


@pytest.mark.parametrize(
    "uri, message",
    [
        ("/some/folder", "wanted http://HOST:PORT"),
        ("http://127.0.0.1:1", "Qdrant at http://127.0.0.1"),
    ],
)
def test_what_is_no_qdrant_is_refused_before_anything_is_embedded(
    gallery, encoder, tmp_path, counting, uri, message
):
    with pytest.raises(ValueError, match=message):
        search.index_gallery(
            gallery, tmp_path / "index", encoder, engine="qdrant", uri=uri
        )
    assert counting == [] and not (tmp_path / "index" / "index.json").exists()
