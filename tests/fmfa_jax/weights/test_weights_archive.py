# SPDX-License-Identifier: Apache-2.0
"""The reader against files that torch and safetensors write."""

import numpy as np
import pytest
import safetensors.torch
import torch

from fmfa_jax.weights.archive import read_archive, sha256
from fmfa_jax.weights.tensors import WeightsError


def assert_same(archive, state):
    assert set(archive.tensors) == set(state)
    for name, wanted in state.items():
        got = archive.tensors[name].read()
        assert got.shape == tuple(wanted.shape), name
        np.testing.assert_array_equal(
            got.astype(np.float64), wanted.detach().double().numpy(), err_msg=name
        )


@pytest.fixture
def state():
    base = torch.arange(24, dtype=torch.float32)
    return {
        "plain": torch.randn(3, 4),
        "transposed": torch.randn(3, 4).t(),
        "part": base[5:17].view(3, 4)[1:, ::2],
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "half": torch.randn(5).half(),
        "brain": torch.randn(5).bfloat16(),
        "double": torch.randn(2).double(),
        "count": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_a_state_dict_is_found_plain_or_wrapped(tmp_path, state, wrapper):
    model = torch.nn.Linear(2, 2)
    adam = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    adam.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, [2, 3])
    rest = {
        "optimizer": adam.state_dict(),
        "scheduler": schedule.state_dict(),
        "epoch": 3,
        "names": {"a", "b"},
        "rng": torch.get_rng_state(),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
    }
    content = state if wrapper is None else {wrapper: state, **rest}
    torch.save(content, tmp_path / "model.pth")
    archive = read_archive(tmp_path / "model.pth")
    assert archive.kind == "torch"
    assert_same(archive, state)
    assert set(archive.others) == (set() if wrapper is None else set(rest))


def test_views_of_one_storage_keep_their_places(tmp_path):
    whole = torch.randn(4, 6)
    state = {"whole": whole, "row": whole[2], "block": whole[1:3, 2:5]}
    torch.save(state, tmp_path / "views.pt")
    assert_same(read_archive(tmp_path / "views.pt"), state)


def test_safetensors_with_every_type(tmp_path, state):
    dense = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(dense, tmp_path / "m.safetensors", {"step": "12"})
    archive = read_archive(tmp_path / "m.safetensors")
    assert archive.kind == "safetensors" and archive.metadata == {"step": "12"}
    assert_same(archive, dense)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("how", ["trace", "script"])
def test_torchscript_attributes_become_dotted_names(tmp_path, how):
    module = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.LayerNorm(4))
    )
    module.register_buffer("input_resolution", torch.tensor(224))
    example = torch.ones(1, 3)
    made = (
        torch.jit.trace(module, example) if how == "trace" else torch.jit.script(module)
    )
    torch.jit.save(made, tmp_path / "clip.pt")
    archive = read_archive(tmp_path / "clip.pt")
    assert archive.kind == "torchscript"
    assert_same(archive, module.state_dict())


def test_a_tensor_is_read_only_and_mapped(tmp_path):
    torch.save({"w": torch.zeros(2, 2)}, tmp_path / "m.pt")
    array = read_archive(tmp_path / "m.pt").tensors["w"].read()
    assert not array.flags.writeable and not array.flags.owndata


def test_the_legacy_format_is_refused_with_its_remedy(tmp_path, monkeypatch):
    old = tmp_path / "old.pth"
    torch.save({"w": torch.ones(2)}, old, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"before 1\.6") as error:
        read_archive(old)
    remedy = str(error.value).split('python -c "')[1].removesuffix('"')
    monkeypatch.chdir(tmp_path)
    exec(remedy)
    assert_same(read_archive(tmp_path / "new.pth"), {"w": torch.ones(2)})


def test_other_files_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"no weight file at .*absent\.pt"):
        read_archive(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("these are not the weights")
    with pytest.raises(WeightsError, match=r"neither a PyTorch zip .* nor a safe"):
        read_archive(tmp_path / "text.pt")


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_a_truncated_file_says_so(tmp_path, name):
    state = {"w": torch.randn(50, 50)}
    if name == "m.pt":
        torch.save(state, tmp_path / name)
    else:
        safetensors.torch.save_file(state, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for share in (0.3, 0.9, 0.999):
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(WeightsError, match=rf"{name}.*(truncated|damaged)"):
            read_archive(tmp_path / name)


def test_a_model_saved_whole_names_what_it_asks_for(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(WeightsError, match=r"asks for torch\.nn\.modules\.linear\.Lin"):
        read_archive(tmp_path / "whole.pt")


def test_content_without_a_state_dict_is_described(tmp_path):
    torch.save({"ema": {"w": 1.0}, "epoch": 1}, tmp_path / "m.pt")
    with pytest.raises(WeightsError, match="it holds ema, epoch"):
        read_archive(tmp_path / "m.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="but a list"):
        read_archive(tmp_path / "list.pt")
    two = {"model": {"w": torch.ones(1)}, "state_dict": {"w": torch.ones(1)}}
    torch.save(two, tmp_path / "two.pt")
    with pytest.raises(WeightsError, match="it holds model, state_dict"):
        read_archive(tmp_path / "two.pt")


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x").startswith("ba7816bf8f01cfea414140de5dae2223")
