# SPDX-License-Identifier: Apache-2.0
"""A drawn gallery of 24 pictures, a small model, and an index over both."""

import shutil
from pathlib import Path

import pytest

from data_pipeline.synthetic import write_population
from data_pipeline.tokenizer import open_tokenizer
from fmfa_jax import models, search, weights
from tests.tiny_model import tiny_model


@pytest.fixture(scope="session")
def population(tmp_path_factory) -> Path:
    return write_population(
        tmp_path_factory.mktemp("people") / "population",
        identities=12,
        images_per_identity=2,
        test_identities=0,
        image_size=(96, 48),
    )


def save_model(path: Path, tokenizer: Path, seed: int) -> Path:
    vocabulary = open_tokenizer(str(tokenizer)).vocab_size
    config = tiny_model(context_length=24, vocab_size=vocabulary)
    return weights.save_native(path, models.init_params(config, seed), config)


@pytest.fixture(scope="session")
def model_file(population, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return save_model(folder / "model.safetensors", population / "tokenizer", 0)


@pytest.fixture(scope="session")
def other_model_file(population, tmp_path_factory) -> Path:
    """Another model of the same sizes."""
    folder = tmp_path_factory.mktemp("model")
    return save_model(folder / "model.safetensors", population / "tokenizer", 1)


@pytest.fixture(scope="session")
def encoder(model_file, population) -> search.IndexModel:
    return search.open_model(model_file, tokenizer=str(population / "tokenizer"))


@pytest.fixture
def gallery(population, tmp_path) -> Path:
    """A copy of the pictures that a test may change."""
    return shutil.copytree(population / "CUHK-PEDES" / "imgs", tmp_path / "gallery")


@pytest.fixture(scope="session")
def shared_gallery(population, tmp_path_factory) -> Path:
    """The pictures beside files that are none of the gallery's."""
    root = tmp_path_factory.mktemp("shared")
    (root / "secret.jpg").write_bytes(b"not yours")
    folder = shutil.copytree(population / "CUHK-PEDES" / "imgs", root / "gallery")
    (folder / "link.jpg").symlink_to(root / "secret.jpg")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("left alone")
    return folder


@pytest.fixture(scope="session")
def index(shared_gallery, encoder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("index") / "people.index"
    search.index_gallery(shared_gallery, out, encoder, batch_size=8)
    return out


@pytest.fixture(scope="session")
def searcher(index) -> search.Searcher:
    return search.open_searcher(index)


@pytest.fixture
def counting(encoder, monkeypatch):
    """The sizes of the batches that were embedded."""
    counts = []
    original = type(encoder).pictures

    def pictures(self, pixels):
        counts.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(type(encoder), "pictures", pictures)
    return counts
