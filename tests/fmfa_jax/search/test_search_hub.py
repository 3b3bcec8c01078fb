# SPDX-License-Identifier: Apache-2.0
"""Indexes made with weights of the hub, and protocols that measure them."""

import shutil

import pytest

from fmfa_jax import search, weights
from fmfa_jax.evaluation.__main__ import main as measure
from fmfa_jax.search import store
from fmfa_jax.search.__main__ import main

NAME = "hf://me/towers"


@pytest.fixture
def published(hub, model_file, population) -> str:
    """The commit of a repository that has the model and its tokenizer."""
    files = {"model.safetensors": model_file.read_bytes()}
    for name in ("vocab.json", "merges.txt"):
        files[name] = (population / "tokenizer" / name).read_bytes()
    return hub.commit("me/towers", files)


def test_an_index_notes_the_commit_and_finds_it_again(
    hub, published, index, shared_gallery, tmp_path, capsys
):
    out = str(tmp_path / "people.index")
    words = ["index", str(shared_gallery), "--model", NAME, "--out", out]
    assert main([*words, "--batch-size", "8"]) == 0
    record = store.read_record(tmp_path / "people.index")
    assert record.model.path == f"{NAME}@{published}/model.safetensors"
    local = store.read_record(index).model
    assert (record.model.sha256, record.model.config) == (local.sha256, local.config)
    hub.commit("me/towers", {"model.safetensors": b"another"})
    capsys.readouterr()
    assert main(["query", out, "a man", "--json"]) == 0
    theirs = capsys.readouterr().out
    assert main(["query", str(index), "a man", "--json"]) == 0
    assert capsys.readouterr().out == theirs
    # The same content under its local name, or the other way round.
    assert main(["query", str(index), "a man", "--model", record.model.path]) == 0
    shutil.rmtree(tmp_path / "cache")
    hub.close()
    with pytest.raises(weights.WeightsError, match="is not in the cache"):
        search.open_searcher(tmp_path / "people.index")


def test_what_is_measured_from_the_hub_needs_a_place_and_data(
    published, tmp_path, capsys
):
    """`tests/test_readme.py` measures one."""
    assert measure(["msd", NAME, "cuhk_pedes:/data"]) == 2
    assert "say where to write the table with --out" in capsys.readouterr().err
    assert measure(["msd", NAME, "--out", str(tmp_path / "out")]) == 2
    assert f"{NAME} is no run folder, so nothing says" in capsys.readouterr().err
