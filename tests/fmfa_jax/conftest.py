# SPDX-License-Identifier: Apache-2.0
"""What the tests of whole runs share."""

import pytest

from tests.hub_server import Hub


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """What tiny runs of all modules share: the first of them draws the population.

    Compiled programs lie there, too.
    """
    folder = tmp_path_factory.mktemp("shared")
    (folder / "compiled").mkdir()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shared):
    """Where the tiny runs of a module lie."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("population", "compiled"):
        (folder / name).symlink_to(shared / name)
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hugging Face Hub on this machine, and an empty cache."""
    started, constants = Hub(), "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", started.url)
    template = started.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
    yield started
    started.close()
