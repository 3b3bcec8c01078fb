# SPDX-License-Identifier: Apache-2.0
"""What is written for other engines is what the index holds."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from fmfa_jax import search
from fmfa_jax.search import export as module
from fmfa_jax.search.__main__ import main
from fmfa_jax.search.export import ABOUT, EMBEDDINGS, PICTURES, export
from fmfa_jax.search.store import SearchError
from tests.fmfa_jax.search.indexes import SMALL


@pytest.fixture(scope="module")
def people(population, encoder, tmp_path_factory) -> Path:
    """An index of a data set's own pictures, in float16."""
    out = tmp_path_factory.mktemp("index") / "people.index"
    imgs = population / "CUHK-PEDES" / "imgs"
    search.index_gallery(imgs, out, encoder, storage="float16", **SMALL)
    return out


def read(out: Path) -> tuple[list[dict], np.ndarray, dict]:
    """What was written, by the readers that others would use."""
    if out.is_dir():
        lines = (out / PICTURES).read_text().splitlines()
        about = json.loads((out / ABOUT).read_text())
        return list(map(json.loads, lines)), np.load(out / EMBEDDINGS), about
    table = parquet.read_table(out)
    about = json.loads(table.schema.metadata[b"fmfa"])
    embeddings = np.array(table["embedding"].to_pylist(), np.float32)
    return table.drop(["embedding"]).to_pylist(), embeddings, about


@pytest.mark.parametrize("to", module.FORMATS)
def test_an_export_holds_the_index(people, population, tmp_path, monkeypatch, to):
    monkeypatch.setattr(module, "_CHUNK", 7)  # does not divide the 24
    out, data = tmp_path / "out", f"cuhk_pedes:{population}"
    assert main(["export", str(people), str(out), "--to", to, "--data", data]) == 0
    rows, embeddings, about = read(out)
    gallery = search.Gallery(people)
    stored = np.concatenate([shard.rows for shard in gallery.shards])
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, stored.astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3)
    stamps = [stamp for shard in gallery.shards for stamp in shard.stamps()]
    annotation = json.loads((gallery.root.parent / "reid_raw.json").read_text())
    persons = {entry["file_path"]: str(entry["id"]) for entry in annotation}
    assert rows == [
        {
            "file": stamp.file,
            "sha256": stamp.sha256.hex(),
            "size": stamp.size,
            "person": persons[stamp.file],
        }
        for stamp in stamps
    ]
    assert len(set(persons.values())) == 12
    assert about["model"]["sha256"] == gallery.record.model.sha256
    assert (about["rows"], about["width"]) == embeddings.shape


def test_persons_are_unknown_without_their_data_set(people, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(people), str(out), "--to", "npy"]) == 0
    assert {row["person"] for row in read(out)[0]} == {None}
    assert "24 pictures" in capsys.readouterr().out


def test_a_data_set_of_other_pictures_is_refused(index, population, tmp_path, capsys):
    """The gallery is a copy: its files are not those of the data set."""
    words = [str(index), str(tmp_path / "out"), "--to", "npy"]
    assert main(["export", *words, "--data", f"cuhk_pedes:{population}"]) == 2
    assert "not one of the 24 pictures" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", module.FORMATS)
def test_a_name_that_is_taken_is_left_alone(people, tmp_path, to):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SearchError, match="out is there already"):
        export(people, tmp_path / "out", to)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_damaged_shard_is_not_exported(people, tmp_path):
    folder = shutil.copytree(people, tmp_path / "index")
    (shard,) = (folder / "shards").iterdir()
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(SearchError, match="missing or damaged"):
        export(folder, tmp_path / "out", "npy")


def test_a_name_that_is_not_utf8_is_kept_or_refused(gallery, encoder, tmp_path):
    odd = os.fsdecode(b"\xff.jpg")
    next(gallery.rglob("*.jpg")).rename(gallery / odd)
    search.index_gallery(gallery, tmp_path / "index", encoder, **SMALL)
    export(tmp_path / "index", tmp_path / "npy", "npy")
    assert odd in {row["file"] for row in read(tmp_path / "npy")[0]}
    with pytest.raises(SearchError, match=r"not UTF-8, which Parquet wants.*--to npy"):
        export(tmp_path / "index", tmp_path / "out", "parquet")
    assert not (tmp_path / "out").exists()


def test_an_empty_index_is_not_exported(gallery, encoder, tmp_path):
    search.index_gallery(gallery, tmp_path / "index", encoder, **SMALL)
    search.remove(tmp_path / "index", [gallery])
    with pytest.raises(SearchError, match="holds no pictures"):
        export(tmp_path / "index", tmp_path / "out", "npy")


def test_what_parquet_needs_is_asked_for_in_a_line(people, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SearchError, match="pip install pyarrow; --to npy needs noth"):
        export(people, tmp_path / "out", "parquet")
