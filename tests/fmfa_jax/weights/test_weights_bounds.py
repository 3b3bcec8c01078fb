# SPDX-License-Identifier: Apache-2.0
"""Files made to cost time or memory: every one ends in a WeightsError, and soon."""

import json
import struct
import tracemalloc
import zipfile

import pytest
import safetensors.torch
import torch

from fmfa_jax import weights
from fmfa_jax.weights import pickles
from fmfa_jax.weights.archive import read_archive

DATA = struct.pack("<6f", *range(6))


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def name(module, what):
    return f"c{module}\n{what}\n".encode()


def number(value):
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(data)) + data


def several(*items):
    return b"(" + b"".join(items) + b"t"


def storage(numel=b"K\x06", key=None):
    kind = name("torch", "FloatStorage")
    key = text("0") if key is None else key
    return several(text("storage"), kind, key, text("cpu"), numel) + b"Q"


def tensor(place=None, offset=b"K\x00", shape=b"K\x06\x85", strides=b"K\x01\x85"):
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return rebuild + several(place or storage(), offset, shape, strides) + b"R"


def under(value, key="w"):
    return b"\x80\x02}" + text(key) + value + b"s."


def doubled(times, op=b"\x86"):
    """A tuple whose hash and length are 2 ** times, in four bytes each."""
    return b")" + b"".join(
        b"q" + bytes([i]) + b"h" + bytes([i]) + op for i in range(times)
    )


def write(path, program, entries=None):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program)
        for key, data in (entries or {"a/data/0": DATA}).items():
            archive.writestr(key, data)
    return path


MODULE = name("__torch__", "M") + b")\x81q\x00}("
HUGE = number(1 << 20000)


def changed(key, value):
    return under(tensor(storage() + b"}" + text(key) + value + b"sb"))


PROGRAMS = {
    "a key whose hash never ends": b"\x80\x02}" + doubled(60) + b"Ns.",
    "a key too deep to hash": b"\x80\x02})" + b"\x85" * 10_000 + b"Ns.",
    "a set of such": b"\x80\x04\x8f(" + doubled(60) + b"\x90.",
    "a call of set with such": b"\x80\x02"
    + name("builtins", "set")
    + several(several(doubled(60)))
    + b"R.",
    "numbers with one hash": b"\x80\x02}("
    + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(3000))
    + b"u.",
    "a list of letters": b"\x80\x02]("
    + name("torch.jit._pickle", "build_intlist")
    + b"q\x000"
    + text("a" * 10**5)
    + b"q\x010"
    + b"h\x00h\x01\x85R" * 500
    + b"e.",
    "sizes of letters": b"\x80\x02]("
    + name("torch", "Size")
    + b"q\x000"
    + text("a" * 10**5)
    + b"q\x010"
    + b"h\x00h\x01\x85R" * 500
    + b"e.",
    "a module in itself": MODULE + text("n" * 10**6) + b"h\x00ub.",
    "a module in itself, doubled": MODULE
    + b"".join(text(c) + b"h\x00" for c in "ab")
    + b"ub.",
    "a module in itself, many": MODULE
    + b"".join(text(f"c{i}") + b"h\x00" for i in range(1000))
    + b"ub.",
    "deep lists": b"\x80\x02" + b"]" * 10**4 + b"a" * (10**4 - 1) + b".",
    "deep wrappers": b"\x80\x02"
    + (b"}" + text("model")) * 500
    + tensor()
    + b"s" * 500
    + b".",
    "a storage of another dtype": changed("dtype", text("x")),
    "a storage of no length": changed("numel", b"N"),
    "a storage of NaN": changed("numel", b"G" + struct.pack(">d", float("nan"))),
    "a storage with a list for a key": changed("key", b"]"),
    "a storage of a huge length": under(tensor(storage(HUGE))),
    "a huge offset": under(tensor(offset=HUGE)),
    "a huge size": under(tensor(shape=HUGE + b"\x85")),
    "a huge stride": under(tensor(shape=b"K\x02\x85", strides=HUGE + b"\x85")),
    "a huge size of nothing": under(
        tensor(shape=b"K\x00" + number(1 << 62) + b"\x86", strides=b"K\x01K\x01\x86")
    ),
    "a name of control characters": under(tensor(), "\x1b[2J\x1b]0;pwned\x07w"),
    "a name with a line": under(tensor(), "w\nerror: nothing\n"),
    "a name that is half a character": b"\x80\x02}X\x03\x00\x00\x00\xed\xa0\x80"
    + tensor()
    + b"s.",
    "a dict in itself": b"\x80\x02}q\x00" + text("model") + b"h\x00s.",
    "a tensor of a list": under(tensor(b"]")),
    "attributes of a set": b"\x80\x04\x8f}" + text("a") + b"Nsb.",
    "a global without a name": b"\x80\x02c\n\n.",
    "a global of numbers": b"\x80\x04K\x01K\x02\x93.",
    "a pop of nothing": b"0.",
    "a memo before it is filled": b"h\x05.",
    "elements for a string": text("a") + b"Na.",
    "an odd number of items": b"}(Nu.",
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_a_program_that_costs(tmp_path, what):
    path = write(tmp_path / "m.pt", PROGRAMS[what])
    tracemalloc.start()
    try:
        with pytest.raises(weights.WeightsError, match=r"m\.pt") as error:
            weights.load_params(path)
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 2000
    assert all(c.isprintable() or c == "\n" for c in str(error.value))


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


def lies(whole):
    """Changes to the table of contents of an archive: {what: [(place, bytes)]}."""
    entry = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"a/data/0"))
    end = whole.rindex(b"PK\x05\x06")
    return {
        "version": [(entry + 6, b"\x63\x00")],
        "offset": [(entry + 42, b"\xfe\xff\xff\xff")],
        "full offset": [(entry + 42, b"\xff\xff\xff\xff")],
        "size": [(entry + 24, b"\xfe\xff\xff\xff")],
        "method": [(entry + 10, b"\x63\x00")],
        "encrypted": [(entry + 8, b"\x01\x00")],
        "no UTF-8": [(entry + 46, b"\xff\xfe")],
        "extra": [(entry + 30, b"\xff\xff")],
        "table size": [(end + 12, b"\xff\xff\x00\x00")],
        "table offset": [(end + 16, b"\xff\xff\x00\x00")],
        "table nowhere": [(end + 16, b"\xff\xff\xff\x7f")],
        "end": [(end, b"PK\x05\x05")],
        "entries": [(end + 10, b"\xff\xff"), (end + 12, b"\xff\xff\xff\x7f")],
    }


def test_archives_whose_table_lies(tmp_path):
    good = write(tmp_path / "m.pt", under(tensor()))
    assert list(read_archive(good).tensors) == ["w"]
    whole = good.read_bytes()
    for what, changes in lies(whole).items():
        lie = bytearray(whole)
        for place, data in changes:
            lie[place : place + len(data)] = data
        good.write_bytes(bytes(lie))
        if what == "version":  # says nothing of how the bytes are stored
            assert list(read_archive(good).tensors) == ["w"]
            continue
        with pytest.raises(weights.WeightsError, match=r"m\.pt"):
            read_archive(good)


@pytest.mark.parametrize("offset", [2**62, 2**63, 2**64 - 1])
def test_offsets_of_large_archives(tmp_path, offset):
    whole = write(tmp_path / "m.pt", under(tensor())).read_bytes()
    entry = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"a/data/0"))
    extra, at = struct.pack("<HHQ", 1, 8, offset), entry + 46 + len("a/data/0")
    lie = bytearray(whole)
    lie[entry + 42 : entry + 46] = b"\xff" * 4
    lie[entry + 30 : entry + 32] = struct.pack("<H", len(extra))
    lie[at:at] = extra
    end = lie.rindex(b"PK\x05\x06")
    (size,) = struct.unpack_from("<I", lie, end + 12)
    struct.pack_into("<I", lie, end + 12, size + len(extra))
    (tmp_path / "m.pt").write_bytes(bytes(lie))
    with pytest.raises(weights.WeightsError, match="beyond the end"):
        read_archive(tmp_path / "m.pt")


def test_a_large_archive_is_read(tmp_path, monkeypatch):
    # zipfile writes the 64-bit end and fields if everything is held to be large.
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1)
    path = write(tmp_path / "m.pt", under(tensor()))
    assert b"PK\x06\x06" in path.read_bytes()
    assert read_archive(path).tensors["w"].read().tolist() == list(range(6))


@pytest.mark.parametrize(
    "header",
    [
        '{"__metadata__":null,"w":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}',
        '{"__metadata__":{"a":' + "[" * 10**4 + "]" * 10**4 + "}}",
        '{"w":{"dtype":"F32","shape":[-6],"data_offsets":[0,24]}}',
        '{"w":NaN}',
        "{}",
    ],
)
def test_strange_safetensors(tmp_path, header):
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + DATA)
    with pytest.raises(weights.WeightsError, match=r"m\.safetensors"):
        weights.load_params(path)
    path.write_bytes(struct.pack("<Q", 2**63) + header.encode())
    with pytest.raises(weights.WeightsError, match="the limit is"):
        weights.load_params(path)


SIZES = {
    "image_size": [[64], [], [64, 32, 3], "ab", [64.5, 32], [1e300, 1], [2**62] * 2],
    "patch": [0, -1, 1e9, "8", 8.5, None, 2**70, True],
    "stride": [0, 2**62, None],
    "image_width": [0, 63, 64 * 2**40, 64.0, "64", 2**70],
    "image_layers": [0, 10**9, 1.5],
    "context_length": [0, 10**12, 2**70],
    "vocab_size": [0, 10**15, 2**70, 2.5],
    "embed_dim": [64 * 2**50],
    "classes": [-1, 2**70, 10**15],
    "irr_layers": [10**9],
    "tse_width": [1, -2, 2**40],
    "tse_ratio": [0, 1.5, "half", None, [0.3]],
    "dtype": ["float64", None, ["x"], {}],
    "activation": ["relu", None, ["gelu"], 1],
    "wings": [2],
}


def test_wild_sizes_in_our_own_config(tmp_path):
    good = {"image_size": [64, 32], "patch": 8, "stride": 8, "image_width": 128}
    good |= {"image_layers": 1, "context_length": 8, "vocab_size": 64}
    good |= {"text_width": 64, "text_layers": 1, "embed_dim": 64}
    path = tmp_path / "m.safetensors"

    def refusal(config):
        metadata = {"format": "fmfa_jax", "version": "1", "config": config}
        safetensors.torch.save_file({"w": torch.ones(6)}, path, metadata)
        with pytest.raises(weights.WeightsError) as error:
            weights.load_params(path, image_size=(64, 32), stride=8)
        return str(error.value)

    assert "missing: image_tower/class_token" in refusal(json.dumps(good))
    for key, values in SIZES.items():
        for value in values:
            text = refusal(json.dumps({**good, key: value}))
            assert "no usable model config" in text, (key, value)
    for config in ("[" * 10**4, "[]", "5", "null", "{}", "\\"):
        assert "no usable model config" in refusal(config)


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
