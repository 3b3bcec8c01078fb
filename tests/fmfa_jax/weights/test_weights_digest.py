# SPDX-License-Identifier: Apache-2.0
"""Weight files of our own carry a digest that is compared when they are loaded."""

import json
import random
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fmfa_jax import models, weights
from fmfa_jax.weights import WeightsError
from tests.tiny_model import tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    config = tiny_model()
    path = tmp_path_factory.mktemp("digest") / "model.safetensors"
    return weights.save_native(path, models.init_params(config, 0), config)


def head_bytes(data: bytes) -> int:
    return 8 + struct.unpack("<Q", data[:8])[0]


def metadata(path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as opened:
        return opened.metadata()


@pytest.mark.parametrize("where", ["header", "tensors"])
def test_a_flipped_bit_is_refused(saved, tmp_path, where):
    data, rng = saved.read_bytes(), random.Random(3)
    head = head_bytes(data)
    places = range(8, head) if where == "header" else range(head, len(data))
    for flip in range(60):
        damaged, place = bytearray(data), rng.choice(places)
        if where == "header" and flip < 6:  # the name of the digest
            place = data.index(b"sha256") + flip
        damaged[place] ^= 1 << rng.randrange(8)
        path = tmp_path / "damaged.safetensors"
        path.write_bytes(damaged)
        with pytest.raises(WeightsError):
            weights.load_params(path)
    assert "is damaged, or was changed" in str(refusal(path)) or where == "header"


def refusal(path) -> WeightsError:
    with pytest.raises(WeightsError) as raised:
        weights.load_params(path)
    return raised.value


def test_a_file_without_a_digest_loads(saved, tmp_path):
    facts = metadata(saved)
    assert len(facts.pop("sha256")) == 64
    old = tmp_path / "old.safetensors"
    save_file(load_file(saved), old, metadata=facts)
    assert "and None was noted" in str(refusal(old))
    save_file(load_file(saved), old, metadata=facts | {"version": "1"})
    first, second = weights.load_params(saved), weights.load_params(old)
    assert first.config == second.config
    flat, other = map(weights.load.flatten_dict, (first.params, second.params))
    assert all(np.array_equal(value, other[key]) for key, value in flat.items())


def test_the_order_of_a_file_does_not_count_but_its_metadata_does(saved, tmp_path):
    again = tmp_path / "again.safetensors"
    save_file(load_file(saved), again, metadata=metadata(saved))
    assert weights.load_params(again).config == tiny_model()
    facts = metadata(saved)
    config = json.loads(facts["config"]) | {"activation": "gelu"}
    changed = {**facts, "config": json.dumps(config)}
    save_file(load_file(saved), again, metadata=changed)
    assert "was changed after it was written" in str(refusal(again))


def test_the_digest_is_the_formats_own(saved, tmp_path):
    params, config = weights.load_params(saved).params, tiny_model()
    with pytest.raises(ValueError, match="reserved by the format"):
        weights.save_native(tmp_path / "x", params, config, {"sha256": "0"})
