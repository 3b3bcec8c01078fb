# SPDX-License-Identifier: Apache-2.0
"""Galleries, models and indexes that lie in a store are read as local ones are."""

import json

import pytest

from data_pipeline.buckets import Bucket
from fmfa_jax.search.__main__ import main
from tests.fmfa_jax.search.indexes import content, same


@pytest.fixture(scope="module")
def url(population, model_file, index):
    """A store with all that a search needs."""
    url = "memory://search"
    for folder, name in ((population, "people"), (index, "people.index")):
        files = [path for path in folder.rglob("*") if path.is_file()]
        names = [path.relative_to(folder).as_posix() for path in files]
        Bucket(f"{url}/{name}").put(folder, names)
    Bucket(url).put(model_file.parent, [model_file.name])
    return url


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_an_index_in_a_store_finds_the_same(url, index, model_file, capsys):
    def found(place: str, *more: str) -> list[dict]:
        assert main(["query", place, "a man in red", "--json", *more]) == 0
        results = json.loads(capsys.readouterr().out)["results"]
        return [{key: hit[key] for key in ("rank", "similarity")} for hit in results]

    local = found(str(index))
    model, gallery = f"{url}/{model_file.name}", f"{url}/people/CUHK-PEDES/imgs"
    more = ["--model", model, "--gallery", gallery]
    assert local and found(f"{url}/people.index", *more) == local
    assert main(["verify", f"{url}/people.index"]) == 0


def test_a_gallery_in_a_store_gives_the_same_index(url, index, model_file, tmp_path):
    line = ["index", f"{url}/people/CUHK-PEDES/imgs", "--out", str(tmp_path / "new")]
    line += ["--model", f"{url}/{model_file.name}", "--batch-size", "8"]
    assert main([*line, "--tokenizer", f"{url}/people/tokenizer"]) == 0
    assert same(content(tmp_path / "new"), content(index))


def test_an_index_in_a_store_is_not_written_to(url, capsys):
    for command in ("add", "remove"):
        with pytest.raises(SystemExit):
            main([command, f"{url}/people.index", "x.jpg"])
        assert "wanted a path on a mounted disk" in capsys.readouterr().err
