# SPDX-License-Identifier: Apache-2.0
"""The weights that a run starts from: their activation, and what refuses them."""

from dataclasses import replace
from pathlib import Path

import jax
import pytest

from data_pipeline.bad_images import BadImages
from fmfa_jax import models, weights
from fmfa_jax.training.loop import bad_images_kept
from fmfa_jax.training.session import first_params, open_session
from tests.tiny_run import DEVICES, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("first")


def opened(folder, **changes):
    config = tiny_config(folder, **changes)
    return open_session(config, str(folder / "run"), devices=jax.devices()[:DEVICES])


@pytest.fixture(scope="module")
def plain(folder):
    return opened(folder)


@pytest.fixture(scope="module")
def file(folder, plain):
    """Weights of the run's sizes that were trained with GELU."""
    config = replace(plain.model, activation="gelu")
    path, params = folder / "gelu.safetensors", models.init_params(config, 0)
    return str(weights.save_native(path, params, config.portable))


def test_a_run_has_the_activation_of_its_first_weights(folder, plain, file):
    assert plain.model.activation == "quick_gelu"
    session = opened(folder, init__path=file)
    assert session.model.activation == "gelu"
    _, origin = first_params(session)
    assert origin["activation"] == "gelu, stated by its own config"
    asked = opened(folder, init__path=file, init__activation="quick_gelu")
    assert asked.model.activation == "quick_gelu"
    _, origin = first_params(asked)
    assert "although its own config states gelu" in origin["activation"]


def test_a_folder_that_has_vanished_is_not_made_again(plain, tmp_path):
    gone = replace(plain, workdir=tmp_path / "gone")
    with (
        pytest.raises(OSError, match="was removed"),
        bad_images_kept(gone, BadImages()),
    ):
        raise OSError("was removed")
    assert not gone.workdir.exists()
    with bad_images_kept(replace(plain, workdir=tmp_path), BadImages()):
        pass
    assert (tmp_path / "bad_images.tsv").is_file()


def test_the_activation_is_a_part_of_what_a_run_is(folder, plain, file):
    assert plain.identity({})["model.activation"] == "quick_gelu"
    other = opened(folder, init__activation="gelu").identity({})
    assert other == plain.identity({}) | {"model.activation": "gelu"}
    gone = opened(folder, init__path=str(folder / "gone.safetensors"))
    assert gone.identity({})["model.activation"] == "quick_gelu"


def test_a_refusal_names_the_configs_keys(folder, plain, file):
    model = replace(plain.model, classes=plain.model.classes + 1)
    path = folder / "other.safetensors"
    weights.save_native(path, models.init_params(model, 0), model.portable)
    with pytest.raises(weights.WeightsError) as error:
        first_params(opened(folder, init__path=str(path)))
    assert "--config.init.drop_classifier=True" in str(error.value)
    assert "--drop-classifier" not in str(error.value)


def test_a_run_starts_from_the_hub_as_from_the_file(folder, file, hub):
    name = "hf://me/towers/gelu.safetensors"
    commit = hub.commit("me/towers", {"gelu.safetensors": Path(file).read_bytes()})
    session, local = opened(folder, init__path=name), opened(folder, init__path=file)
    assert session.model.activation == "gelu"
    assert session.settings.flat["init.path"] == name  # what config.json says
    _, origin = first_params(session)
    _, same = first_params(local)
    assert session.identity(origin) == local.identity(same)
    assert commit in origin["source"]
    # What is fetched is opened once: another commit changes nothing of this session.
    hub.commit("me/towers", {"gelu.safetensors": b"else"})
    assert first_params(session)[1] == origin
    with pytest.raises(weights.WeightsError, match="has no such repository"):
        opened(folder, init__path="hf://me/nothing")
