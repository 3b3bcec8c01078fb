# SPDX-License-Identifier: Apache-2.0
"""Pickles and archives assembled by hand, as PyTorch writes them or never would."""

import io
import json
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

DATA = struct.pack("<6f", *range(6))
"""The storage "0" of `archive`: six floats."""


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def name(module: str, what: str) -> bytes:
    return f"c{module}\n{what}\n".encode()


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(data)) + data


def several(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def storage(numel: bytes = b"K\x06", key: bytes | None = None) -> bytes:
    kind = name("torch", "FloatStorage")
    key = text("0") if key is None else key
    return several(text("storage"), kind, key, text("cpu"), numel) + b"Q"


def tensor(
    place: bytes | None = None,
    offset: bytes = b"K\x00",
    shape: bytes = b"K\x06\x85",
    strides: bytes = b"K\x01\x85",
) -> bytes:
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return rebuild + several(place or storage(), offset, shape, strides) + b"R"


def under(value: bytes, key: str = "w") -> bytes:
    return b"\x80\x02}" + text(key) + value + b"s."


def doubled(times: int, op: bytes = b"\x86") -> bytes:
    """A tuple whose hash and length are 2 ** times, in four bytes each."""
    return b")" + b"".join(
        b"q" + bytes([i]) + b"h" + bytes([i]) + op for i in range(times)
    )


def state_dict(tensors: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, bytes]]:
    """Return the program of a state dict of float32 arrays, and its storages."""
    program, storages = b"\x80\x02}(", {}
    for place, (key, array) in enumerate(tensors.items()):
        dense = np.ascontiguousarray(array, np.float32)
        strides = [number(n // 4) for n in dense.strides]
        program += text(key) + tensor(
            storage(number(dense.size), text(str(place))),
            shape=several(*map(number, dense.shape)),
            strides=several(*strides),
        )
        storages[f"a/data/{place}"] = dense.tobytes()
    return program + b"u.", storages


def archive(program: bytes, entries: Mapping[str, bytes] | None = None) -> bytes:
    """Return a zip of a pickle and of entries, by default the storage "0"."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a/data.pkl", program)
        for key, data in ({"a/data/0": DATA} if entries is None else entries).items():
            file.writestr(key, data)
    return stream.getvalue()


def safetensors(header: object, data: bytes = DATA) -> bytes:
    """Return a safetensors file; the header is JSON, or a text as it stands."""
    encoded = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data
