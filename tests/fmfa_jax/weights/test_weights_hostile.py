# SPDX-License-Identifier: Apache-2.0
"""Files made to harm: each is refused by name, and nothing in it runs."""

import builtins
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from fmfa_jax.weights import UnsafePickleError, WeightsError, read_archive


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def write_archive(path, content, storages=None, *, compress=(), extra=()):
    """A PyTorch archive around any pickle, entry by entry."""
    with zipfile.ZipFile(path, "w") as archive:
        entries = {"a/data.pkl": content, "a/version": b"3\n"}
        entries |= {f"a/data/{key}": data for key, data in (storages or {}).items()}
        for name, data in [*entries.items(), *extra]:
            packed = name.removeprefix("a/") in compress
            method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            archive.writestr(name, data, method)
    return path


class _Storage:
    def __init__(self, key, numel, kind=torch.FloatStorage):
        self.pid = ("storage", kind, key, "cpu", numel)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, _Storage) else None


def dump(content):
    stream = io.BytesIO()
    _Pickler(stream, protocol=2).dump(content)
    return stream.getvalue()


def tensor(storage, offset, shape, strides):
    rebuild = torch._utils._rebuild_tensor_v2
    return Call(rebuild, storage, offset, shape, strides, False, OrderedDict())


def bombs(marker):
    command = f"touch {marker}"
    attack = Call(os.system, command)
    return {
        r"posix\.system": attack,
        r"(__builtin__|builtins)\.eval": Call(eval, f"open({marker!r}, 'w')"),
        r"(__builtin__|builtins)\.getattr": Call(getattr, "x", "join"),
        r"(__builtin__|builtins)\.exec": Call(builtins.exec, "1"),
        r"functools\.partial": Call(__import__("functools").partial, os.system),
        r"torch\.storage\._load_from_bytes": Call(torch.storage._load_from_bytes, b""),
    }


@pytest.mark.parametrize("name", bombs("marker"))
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["model", "optimizer", "nested"])
def test_a_pickle_that_calls_is_refused_by_name(tmp_path, name, protocol, place):
    marker = tmp_path / "marker"
    bomb = bombs(str(marker))[name]
    content = {"model": {"w": torch.ones(2)}, "optimizer": {}}
    if place == "nested":
        content["model"] = Call(OrderedDict, [["w", Call(set, [bomb])]])
    else:
        content[place]["w"] = bomb
    torch.save(content, tmp_path / "bomb.pth", pickle_protocol=protocol)
    with pytest.raises(UnsafePickleError, match=f"asks for {name}"):
        read_archive(tmp_path / "bomb.pth")
    assert not marker.exists()


def test_the_bombs_are_live(tmp_path):
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(bombs(str(marker))[r"posix\.system"]))
    assert marker.exists()


@pytest.mark.parametrize(
    "program",
    {
        "attribute of a permitted name": b"ctorch._utils\n_rebuild_tensor_v2\n"
        b"}X\x04\x00\x00\x00nameX\x01\x00\x00\x00xsb.",
        "calling a type": b"ctorch\nFloatStorage\n)R.",
        "attribute of a module class": b"c__torch__\nM\n}X\x01\x00\x00\x00aK\x01sb.",
        "attributes of an OrderedDict": b"ccollections\nOrderedDict\n)R"
        b"}X\x05\x00\x00\x00itemsK\x01sb.",
        "arguments for a module": b"c__torch__\nM\nK\x01\x85\x81.",
        "a module without names": b"c__torch__\nM\n)\x81}K\x01K\x02sb.",
        "extension code": b"\x82\x01.",
        "a memo of gigabytes": b"}r\xff\xff\xff\xff.",
        "a length beyond the end": b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\x00\x00.",
        "a storage by text": b"Pstorage\n.",
        "stack underflow": b"R.",
        "no end": b"}",
        "nothing": b"",
    }.items(),
    ids=lambda item: item[0],
)
def test_programs_that_pytorch_never_writes(tmp_path, program):
    path = write_archive(tmp_path / "m.pt", program[1])
    with pytest.raises(WeightsError, match=r"m\.pt"):
        read_archive(path)


def test_nothing_leaks_from_one_file_into_the_next(tmp_path):
    module = b"c__torch__\nM\n"
    poison = module + b"N}X\x0a\x00\x00\x00attributesK\x01s\x86b."
    with pytest.raises(WeightsError):
        read_archive(write_archive(tmp_path / "poison.pt", poison))
    torch.save({"w": torch.ones(2)}, tmp_path / "good.pt")
    assert list(read_archive(tmp_path / "good.pt").tensors) == ["w"]


DATA = np.arange(6, dtype=np.float32).tobytes()


@pytest.mark.parametrize(
    ("described", "complaint"),
    [
        (tensor(_Storage("0", 6), 0, (7,), (1,)), "exceed the storage of 6"),
        (tensor(_Storage("0", 6), 5, (2,), (1,)), "exceed"),
        (tensor(_Storage("0", 6), 0, (2, 2), (5, 1)), "exceed"),
        (tensor(_Storage("0", 6), 0, (10**12,), (0,)), "overlapping view"),
        (tensor(_Storage("0", 6), 0, (3, 3), (1, 1)), "overlapping view"),
        (tensor(_Storage("0", 6), 0, (2, 2), (1,)), "not one that PyTorch writes"),
        (tensor(_Storage("0", 6), -1, (2,), (1,)), "not all counts"),
        (tensor(_Storage("0", 6), 0, (2,), (-1,)), "not all counts"),
        (tensor(_Storage("0", 6), 0, (2.0,), (1,)), "not all counts"),
        (tensor(_Storage("0", 6), 0, "ab", "cd"), "not a short tuple"),
        (tensor(_Storage("0", 6), 0, (1,) * 99, (1,) * 99), "not a short tuple"),
        (tensor("storage", 0, (2,), (1,)), "not one that PyTorch writes"),
        (tensor(_Storage("1", 6), 0, (2,), (1,)), "no storage '1'"),
        (tensor(_Storage("../data.pkl", 2), 0, (2,), (1,)), "no storage '../data.pkl'"),
        (tensor(_Storage("0", 7), 0, (7,), (1,)), "holds? 7 x float32.* has 24 bytes"),
        (tensor(_Storage("0", 6, torch.DoubleStorage), 0, (6,), (1,)), "24 bytes"),
    ],
)
def test_a_tensor_that_does_not_fit_its_storage(tmp_path, described, complaint):
    content = dump(
        {"good": tensor(_Storage("0", 6), 1, (2, 2), (1, 2)), "bad": described}
    )
    path = write_archive(tmp_path / "m.pt", content, {"0": DATA})
    with pytest.raises(WeightsError, match=rf"bad: .*{complaint}") as error:
        read_archive(path)
    assert "good" not in str(error.value)


def test_the_hand_made_archive_is_readable_when_honest(tmp_path):
    content = dump({"good": tensor(_Storage("0", 6), 1, (2, 2), (1, 2))})
    path = write_archive(tmp_path / "m.pt", content, {"0": DATA})
    got = read_archive(path).tensors["good"].read()
    np.testing.assert_array_equal(got, [[1, 3], [2, 4]])


def test_many_tensors_over_one_storage_are_no_way_to_grow(tmp_path):
    one = tensor(_Storage("0", 6000), 0, (6000,), (1,))
    content = dump({f"w{i}": one for i in range(40)})
    path = write_archive(tmp_path / "m.pt", content, {"0": bytes(24000)})
    with pytest.raises(WeightsError, match="overlap in one storage"):
        read_archive(path)


@pytest.mark.parametrize("packed", ["data.pkl", "data/0"])
def test_compressed_entries_are_refused(tmp_path, packed):
    content = dump({"w": tensor(_Storage("0", 10**6), 0, (10**6,), (1,))})
    storages = {"0": bytes(4 * 10**6)}
    path = write_archive(tmp_path / "m.pt", content, storages, compress=(packed,))
    with pytest.raises(WeightsError, match=f"entry a/{packed} is compressed"):
        read_archive(path)


def test_a_zip_that_lies_about_its_entries(tmp_path):
    content = dump({"w": tensor(_Storage("0", 6), 0, (6,), (1,))})
    path = write_archive(tmp_path / "m.pt", content, {"0": DATA})
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("a/data/0")
    # The central directory's record of a/data/0: sizes at 20 and 24, header at 42.
    record = whole.rindex(b"a/data/0") - 46
    for place, value, complaint in (
        (24, 10**6, "beyond the end|damaged"),
        (42, info.header_offset + 1, "no header where it should be|damaged"),
    ):
        lie = bytearray(whole)
        lie[record + place : record + place + 4] = struct.pack("<I", value)
        path.write_bytes(bytes(lie))
        with pytest.raises(WeightsError, match=complaint):
            read_archive(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        (("a/data/0", DATA), "entry a/data/0 occurs twice"),
        (("b/data.pkl", b"}."), "with 2 data.pkl"),
        (("a/byteorder", b"big"), "are big-endian"),
    ],
)
def test_archives_with_strange_entries(tmp_path, extra, complaint):
    content = dump({"w": tensor(_Storage("0", 6), 0, (6,), (1,))})
    path = write_archive(tmp_path / "m.pt", content, {"0": DATA}, extra=[extra])
    with pytest.raises(WeightsError, match=complaint):
        read_archive(path)


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("pictures/1.jpg", b"x")
    with pytest.raises(WeightsError, match="no PyTorch archive"):
        read_archive(tmp_path / "pictures.zip")


def test_modules_that_hold_each_other_do_not_run_on(tmp_path):
    # A module whose attribute is itself: memo 0 is put before BUILD refers to it.
    program = b"c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."
    path = write_archive(tmp_path / "m.pt", program)
    with pytest.raises(WeightsError, match="nests more than"):
        read_archive(path)


def test_hostile_safetensors_headers(tmp_path):
    def write(header, data=b"\0" * 8):
        text = header.encode()
        path = tmp_path / "m.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        return path

    entry = '{"w":{"dtype":"F32","shape":[2],"data_offsets":[%d,%d]}}'
    assert list(read_archive(write(entry % (0, 8))).tensors) == ["w"]
    for bad in (
        entry % (0, 16),
        entry % (4, 12),
        entry.replace("[2]", "[9]") % (0, 8),
        '{"w":{}}',
        "{",
    ):
        with pytest.raises(WeightsError, match="truncated or damaged"):
            read_archive(write(bad))
