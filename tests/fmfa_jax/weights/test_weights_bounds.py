# SPDX-License-Identifier: Apache-2.0
"""Files made to cost time or memory: every one ends in a WeightsError, and soon."""

import json
import tracemalloc
import zipfile

import pytest
import safetensors.torch
import torch

from fmfa_jax import weights
from fmfa_jax.weights import pickles
from fmfa_jax.weights.archive import read_archive
from tests.bad_inputs.programs import archive, doubled, number, tensor, text, under
from tests.bad_inputs.weights import PROGRAMS

# To trace all memory takes ten times as long.
COSTLY = [row for row in PROGRAMS if len(row[0]) < 10**5]


def write(path, program):
    path.write_bytes(archive(program))
    return path


@pytest.mark.parametrize("row", COSTLY, ids=range(len(COSTLY)))
def test_a_program_costs_little_memory(tmp_path, row):
    program, message = row
    path = write(tmp_path / "m.pt", program)
    tracemalloc.start()
    try:
        with pytest.raises(weights.WeightsError) as error:
            weights.load_params(path)
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()
    assert message in str(error.value)


def test_only_short_strings_are_kept_as_keys():
    """Any other could be made to collide, or to be compared at length."""
    keys = [number(i * (2**61 - 1)) for i in range(50)] + [doubled(20)]
    keys += [text("n" * 2000), text("w")]
    read = pickles.read_pickle(b"\x80\x02}(" + b"N".join(keys) + b"Nu.")
    assert len(read) == 2 and list(read)[1] == "w"


def test_there_are_only_so_many_instructions(tmp_path, monkeypatch):
    path = write(tmp_path / "m.pt", b"\x80\x02" + b"N0" * 1000 + b"}.")
    with pytest.raises(weights.WeightsError, match="it holds nothing"):
        read_archive(path)
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(weights.WeightsError, match="more than 1000 instructions"):
        read_archive(path)


@pytest.mark.parametrize("op", [b"}", b"]", b"(", b")\x85", b"\x8f", b"N\x94"])
def test_an_instruction_takes_little_memory(op):
    tracemalloc.start()
    try:
        with pytest.raises(weights.WeightsError):
            pickles.read_pickle(b"\x80\x04" + op * 5_000)
        assert tracemalloc.get_traced_memory()[1] < 400 * 5_000
    finally:
        tracemalloc.stop()


def test_the_version_of_an_entry_says_nothing_of_its_bytes(tmp_path):
    lie = bytearray(archive(under(tensor())))
    entry = lie.rindex(b"PK\x01\x02", 0, lie.rindex(b"a/data/0"))
    lie[entry + 6 : entry + 8] = b"\x63\x00"
    (tmp_path / "m.pt").write_bytes(bytes(lie))
    assert list(read_archive(tmp_path / "m.pt").tensors) == ["w"]


def test_a_large_archive_is_read(tmp_path, monkeypatch):
    # zipfile writes the 64-bit end and fields if everything is held to be large.
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1)
    path = write(tmp_path / "m.pt", under(tensor()))
    assert b"PK\x06\x06" in path.read_bytes()
    assert read_archive(path).tensors["w"].read().tolist() == list(range(6))


def test_our_own_config_must_fit_its_tensors(tmp_path):
    config = {"image_size": [8192, 8192], "patch": 8, "stride": 8, "image_width": 64}
    config |= {"image_layers": 1, "context_length": 2**16, "vocab_size": 64}
    config |= {"text_width": 64, "text_layers": 1, "embed_dim": 64}
    metadata = {"format": "fmfa_jax", "version": "1", "config": json.dumps(config)}
    path, tensors = tmp_path / "m.safetensors", {"text_tower/position": (8, 64)}
    tensors = {name: torch.ones(shape) for name, shape in tensors.items()}
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(weights.WeightsError, match="contradicts itself"):
        weights.load_params(path)
