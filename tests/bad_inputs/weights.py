# SPDX-License-Identifier: Apache-2.0
"""Weight files: content -> message."""

import gzip
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

from fmfa_jax import weights
from tests.bad_inputs.programs import (
    DATA,
    archive,
    doubled,
    name,
    number,
    safetensors,
    several,
    storage,
    tensor,
    text,
    under,
)
from tests.bad_inputs.table import Reader

MODULE = name("__torch__", "M") + b")\x81q\x00}("
HUGE = number(1 << 20000)
CALL = name("torch.jit._pickle", "build_intlist")


def changed(key: str, value: bytes) -> bytes:
    return under(tensor(storage() + b"}" + text(key) + value + b"sb"))


def called(module: str, what: str, *args: bytes) -> bytes:
    return under(name(module, what) + several(*args) + b"R")


PROGRAMS = [
    (b"\x80\x02}" + doubled(60) + b"Ns.", "it holds <no string>"),
    (b"\x80\x02})" + b"\x85" * 10_000 + b"Ns.", "it holds <no string>"),
    (b"\x80\x04\x8f(" + doubled(60) + b"\x90.", "a whole object, which asks for set"),
    (
        b"\x80\x02" + name("builtins", "set") + several(several(doubled(60))) + b"R.",
        "which asks for builtins.set",
    ),
    (
        b"\x80\x02}("
        + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(3000))
        + b"u.",
        "it holds <no string>",
    ),
    (
        b"\x80\x02]("
        + CALL
        + b"q\x000"
        + text("a" * 10**5)
        + b"q\x010"
        + b"h\x00h\x01\x85R" * 500
        + b"e.",
        "no state dict in this file, but a list",
    ),
    (
        b"\x80\x02]("
        + name("torch", "Size")
        + b"q\x000"
        + text("a" * 10**5)
        + b"q\x010"
        + b"h\x00h\x01\x85R" * 500
        + b"e.",
        "no state dict in this file, but a list",
    ),
    # A tuple of 50,000 that a function is called with again and again.
    (
        b"\x80\x02]("
        + name("torch", "Size")
        + b"q\x00("
        + b"N" * 50_000
        + b"tq\x010"
        + b"h\x01R0h\x00" * 40_000
        + b"e.",
        "no state dict in this file, but a list",
    ),
    (MODULE + text("n" * 10**6) + b"h\x00ub.", "must be a dict of named attributes"),
    (MODULE + b"".join(text(c) + b"h\x00" for c in "ab") + b"ub.", "nests more than"),
    (
        MODULE + b"".join(text(f"c{i}") + b"h\x00" for i in range(1000)) + b"ub.",
        "nests more than",
    ),
    (b"\x80\x02" + b"]" * 10**4 + b"a" * (10**4 - 1) + b".", "but a list"),
    (
        b"\x80\x02" + (b"}" + text("model")) * 500 + tensor() + b"s" * 500 + b".",
        "it holds model",
    ),
    (changed("dtype", text("x")), "tries to change a StorageRecord"),
    (changed("numel", b"N"), "tries to change a StorageRecord"),
    (
        changed("numel", b"G" + struct.pack(">d", float("nan"))),
        "tries to change a StorageRecord",
    ),
    (changed("key", b"]"), "tries to change a StorageRecord"),
    (under(tensor(storage(HUGE))), "a storage reference that PyTorch never writes"),
    (
        under(tensor(storage(key=text("k" * 501)))),
        "a storage reference that PyTorch never writes",
    ),
    (under(tensor(storage(b"J\xff\xff\xff\xff"))), "that PyTorch never writes"),
    (under(tensor(offset=HUGE)), "are not all counts"),
    (under(tensor(shape=HUGE + b"\x85")), "are not all counts"),
    (under(tensor(shape=b"K\x02\x85", strides=HUGE + b"\x85")), "are not all counts"),
    (
        under(
            tensor(
                shape=b"K\x00" + number(1 << 62) + b"\x86", strides=b"K\x01K\x01\x86"
            )
        ),
        "those of no family",
    ),
    (under(tensor(shape=b"K\x07\x85")), "exceed the storage of 6 elements"),
    (under(tensor(offset=b"K\x06")), "offset 6 exceed the storage of 6 elements"),
    (
        under(tensor(shape=b"K\x03K\x02\x86", strides=b"K\x01K\x01\x86")),
        "form an overlapping view",
    ),
    (under(tensor(storage(b"K\x07"))), "should hold 7 x float32"),
    (under(tensor(storage(key=text("1")))), "the archive has no storage '1'"),
    (
        under(tensor(shape=several(*[b"K\x01"] * 17))),
        "its sizes or strides are not a short tuple",
    ),
    (under(tensor(), "\x1b[2J\x1b]0;pwned\x07w"), r"begin with \x1b[2J\x1b]0;pwned"),
    (under(tensor(), "w\nerror: nothing\n"), r"begin with w\nerror: nothing\n"),
    (
        b"\x80\x02}X\x03\x00\x00\x00\xed\xa0\x80" + tensor() + b"s.",
        r"begin with \ud800",
    ),
    (b"\x80\x02}q\x00" + text("model") + b"h\x00s.", "it holds model"),
    (under(tensor(b"]")), "its description is not one that PyTorch writes"),
    (b"\x80\x04\x8f}" + text("a") + b"Nsb.", "which asks for set"),
    (b"\x80\x02c\n\n.", "asks for a global named ."),
    (b"\x80\x04K\x01K\x02\x93.", "asks for a global that has no name"),
    (b"0.", "the pickle is damaged (IndexError"),
    (b"h\x05.", "the pickle is damaged (IndexError"),
    (b"q\x05.", "a memo index after 0 entries"),
    (text("a") + b"Na.", "elements for a str"),
    (b"}(Nu.", "items for a dict"),
    (b"]Nb.", "tries to change a list"),
    (b"Nb.", "the pickle is damaged (IndexError"),
    (b"\x80\x02K\x01)R.", "the pickle calls a int"),
    (b"\x80\x02" + name("torch", "FloatStorage") + b")R.", "calls torch.FloatStorage"),
    (
        b"\x80\x02" + name("__torch__", "M") + b"N\x85R.",
        "a TorchScript module with arguments",
    ),
    (b"\x80\x02\x84\x01\x00\x00\x00.", "an instruction that PyTorch never writes"),
    (b"\x80\x02(ios\nsystem\n.", "an instruction that PyTorch never writes"),
    (b"P1\n.", "an instruction that PyTorch never writes"),
    (b"\x80\x05\x97.", "an instruction that PyTorch never writes"),
    (b"\x80\x02}", "the pickle is damaged (ValueError"),
    (b"", "the pickle is damaged (ValueError"),
    (b"\x80\x02X\xff\xff\xff\x7fa.", "the pickle is damaged (ValueError"),
    (b"I" + b"9" * 5000 + b"\n.", "the pickle is damaged (ValueError"),
    (b"N0" * 125_001 + b"N.", "more than 250000 instructions"),
    (
        b"".join(name("a", f"{i}") for i in range(5001)) + b".",
        "more than 5000 different globals",
    ),
    (under(name("torch._utils", "_rebuild_tensor_v2") + b")R"), "a tensor without"),
    (b"\x80\x02K\x01.", "but a int; save model.state_dict()"),
    (b"\x80\x02" + text("hello") + b".", "but a str; save model.state_dict()"),
    (b"\x80\x02}" + b"K\x01" + tensor() + b"s.", "are not all strings"),
    (called("os", "system", text("true")), "asks for os.system"),
    (called("posix", "system", text("true")), "asks for posix.system"),
    (called("subprocess", "Popen", text("true")), "asks for subprocess.Popen"),
    (called("builtins", "eval", text("1")), "asks for builtins.eval"),
    (called("builtins", "getattr", text("a")), "asks for builtins.getattr"),
    (called("__builtin__", "exec", text("1")), "asks for __builtin__.exec"),
    (called("importlib", "import_module", text("os")), "importlib.import_module"),
    (called("functools", "partial", text("x")), "asks for functools.partial"),
    (called("operator", "attrgetter", text("x")), "asks for operator.attrgetter"),
    (called("types", "CodeType"), "asks for types.CodeType"),
    (called("torch", "load", text("x")), "asks for torch.load"),
    (called("torch.hub", "load", text("x")), "asks for torch.hub.load"),
    (called("torch.storage", "_load_from_bytes", text("x")), "_load_from_bytes"),
    (called("pickle", "loads", text("x")), "asks for pickle.loads"),
    (called("ctypes", "CDLL", text("x")), "asks for ctypes.CDLL"),
    (called("runpy", "run_path", text("x")), "asks for runpy.run_path"),
    (called("pty", "spawn", text("x")), "asks for pty.spawn"),
    (called("code", "interact"), "asks for code.interact"),
    (
        b"\x80\x04"
        + text("os")
        + text("system")
        + b"\x93"
        + several(text("true"))
        + b"R.",
        "asks for os.system",
    ),
    (
        b"\x80\x02" + name("os", "system") + several(text("true")) + b"\x81.",
        "asks for os.system",
    ),
    (b"\x80\x02(" + name("os", "system") + text("true") + b"o.", "asks for os.system"),
    (b"\x80\x04" + text("a" * 200) + text("b" * 200) + b"\x93.", "a global named aaaa"),
]


def zipped(*entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for key, data in entries:
            file.writestr(key, data, method)
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        file.addfile(tarfile.TarInfo("x"))
    return stream.getvalue()


GOOD = archive(under(tensor()))
ENTRY = GOOD.rindex(b"PK\x01\x02", 0, GOOD.rindex(b"a/data/0"))
END = GOOD.rindex(b"PK\x05\x06")


def lie(place: int, data: bytes, whole: bytes = GOOD) -> bytes:
    return whole[:place] + data + whole[place + len(data) :]


def far(offset: int) -> bytes:
    """An archive that says with 64 bits where its storage is."""
    extra, at = struct.pack("<HHQ", 1, 8, offset), ENTRY + 46 + len("a/data/0")
    whole = lie(ENTRY + 42, b"\xff" * 4)
    whole = lie(ENTRY + 30, struct.pack("<H", len(extra)), whole)
    (size,) = struct.unpack_from("<I", whole, END + 12)
    whole = lie(END + 12, struct.pack("<I", size + len(extra)), whole)
    return whole[:at] + extra + whole[at:]


FILES = [
    (b"", "is empty: download it again"),
    (bytes(600), "begins with zeros: its download was cut off"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    (b"/annex/objects/SHA256E-s1", "is a git-annex pointer"),
    (gzip.compress(GOOD), "compressed with gzip"),
    (b"BZh91AY", "compressed with bzip2"),
    (b"\xfd7zXZ\x00", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd\x00", "compressed with zstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (tarred(), "is a tar archive"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x93NUMPY\x01", "a NumPy array"),
    (b"GGUF\x03", "a GGUF file"),
    (b"\x08\x07", "an ONNX program"),
    (b"\x80\x02}.", "PyTorch's format from before 1.6"),
    (b"<!DOCTYPE html>", "is a web page"),
    (b"<?xml version='1.0'?>", "is a web page"),
    (b'{"error": 404}', "is JSON text"),
    (b"hello", "is neither a PyTorch zip archive nor a safetensors file"),
    (b"PK", "the zip archive is truncated or damaged (its end is missing)"),
    (GOOD[: len(GOOD) // 2], "its end is missing"),
    (zipped(("a/x", b"")), "a zip file with 0 data.pkl"),
    (zipped(("x.npy", b"")), "it is NumPy's .npz"),
    (zipped(("a/data.pkl", b"N."), ("b/data.pkl", b"N.")), "with 2 data.pkl"),
    (zipped(("a/b/data.pkl", b"N.")), "no PyTorch archive"),
    (zipped(("data.pkl", b"N.")), "no PyTorch archive"),
    (
        zipped(("a/data.pkl", b"N." * 99), method=zipfile.ZIP_DEFLATED),
        "is compressed or encrypted",
    ),
    (
        zipped(("a/data.pkl", b"N."), ("a/byteorder", b"big")),
        "the tensors are big-endian",
    ),
    (zipped(("a/data.pkl", bytes(16 * 2**20 + 1))), "the limit is 16777216"),
    (
        zipped(*((f"a/{i}", b"") for i in range(40_001))),
        "40001 entries",
    ),
    (lie(ENTRY + 42, b"\xfe\xff\xff\xff"), "reaches beyond the end of the file"),
    (lie(ENTRY + 42, b"\xff\xff\xff\xff"), "reaches beyond the end of the file"),
    (lie(ENTRY + 42, b"\x01"), "has no header where it should be"),
    (lie(ENTRY + 24, b"\xfe\xff\xff\xff"), "reaches beyond the end of the file"),
    (lie(ENTRY + 24, b"\x01"), "the archive has 1 bytes"),
    (lie(ENTRY + 10, b"\x63\x00"), "is compressed or encrypted"),
    (lie(ENTRY + 8, b"\x01\x00"), "is compressed or encrypted"),
    (lie(ENTRY + 46, b"\xff\xfe"), "the archive has no storage '0'"),
    (lie(ENTRY + 30, b"\xff\xff"), "an entry of its table of contents is cut"),
    (lie(ENTRY, b"XX"), "no entry where one should be"),
    (lie(END + 12, b"\xff\xff\x00\x00"), "truncated or damaged"),
    (lie(END + 16, b"\xff\xff\xff\x7f"), "truncated or damaged"),
    (lie(END, b"PK\x05\x05"), "its end is missing"),
    (far(2**62), "beyond the end"),
    (far(2**63), "beyond the end"),
    (far(2**64 - 1), "beyond the end"),
]

ENTRY_F32 = {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
DEEP = "[" * 10**4 + "]" * 10**4
SAFETENSORS = [
    ("{", "truncated or damaged"),
    ("{}", "incomplete metadata, file not fully covered"),
    ('{"w":NaN}', "truncated or damaged"),
    ('{"w":{}}', "truncated or damaged"),
    ('{"__metadata__":{"a":' + DEEP + "}}", "truncated or damaged"),
    ('{"w":{"dtype":"F32","shape":[6],"data_offsets":[0,24],"x":' + DEEP, "recursion"),
    ({"w": ENTRY_F32 | {"shape": [-6]}}, "truncated or damaged"),
    ({"w": ENTRY_F32 | {"shape": [7]}}, "truncated or damaged"),
    ({"w": ENTRY_F32 | {"shape": [6.0]}}, "truncated or damaged"),
    ({"w": ENTRY_F32 | {"shape": [2**70]}}, "truncated or damaged"),
    ({"w": ENTRY_F32 | {"shape": [2**62, 2**62]}}, "truncated or damaged"),
    ({"w": ENTRY_F32 | {"data_offsets": [0, 25]}}, "truncated or damaged"),
    ({"w": ENTRY_F32 | {"data_offsets": [4, 28]}}, "truncated or damaged"),
    ({"w": ENTRY_F32 | {"data_offsets": [24, 0]}}, "truncated or damaged"),
    ({"w": ENTRY_F32 | {"dtype": "F99"}}, "truncated or damaged"),
    ({"w": ENTRY_F32 | {"dtype": "U32"}}, "has the unsupported dtype U32"),
    ({"w": ENTRY_F32 | {"shape": [6] + [1] * 16}}, "w has 17 axes"),
    ({"w": ENTRY_F32 | {"shape": [6] + [1] * 10**5}}, "w has 100001 axes"),
    ({"__metadata__": None, "w": ENTRY_F32}, "those of no family"),
    ({"__metadata__": {"a": 1}, "w": ENTRY_F32}, "truncated or damaged"),
    ({"\x1b[2J": ENTRY_F32}, r"begin with \x1b[2J"),
    (
        {f"w{i}": EMPTY for i in range(20_001)} | {"w": ENTRY_F32},
        "20002 tensors with names of",
    ),
    (
        {"w" * (2**20 + 1): ENTRY_F32},
        "1 tensors with names of 1048577 letters together; the limits are",
    ),
    ({"visual.trunk.x": ENTRY_F32}, "this is open_clip with an image tower of timm"),
    ({"visual.layer1.x": ENTRY_F32}, "this is CLIP with a ResNet image tower"),
    ({"x.lora_A.w": ENTRY_F32}, "this is a LoRA adapter"),
    ({"lm_head.weight": ENTRY_F32}, "this is a language model"),
    ({"text_decoder.x": ENTRY_F32}, "this is CoCa"),
    ({"visual.proj": ENTRY_F32}, "does not fit this model; nothing was loaded"),
    (
        {"visual.proj": ENTRY_F32, "module.visual.proj": ENTRY_F32},
        "truncated or damaged",
    ),
    (
        {"vision_model.post_layernorm.weight": ENTRY_F32},
        "this is the image tower of a Hugging Face CLIP alone",
    ),
]
OTHER_SAFETENSORS = [
    (struct.pack("<Q", 2**63) + b"{}", "the limit is 2097152"),
    (struct.pack("<Q", 2 * 2**20 + 1) + b"{}", "the limit is 2097152"),
    (struct.pack("<Q", 100) + b"{}", "truncated or damaged"),
]

SIZES = {"image_size": [64, 32], "patch": 8, "stride": 8, "image_width": 64}
SIZES |= {"image_layers": 1, "context_length": 8, "vocab_size": 64}
SIZES |= {"text_width": 64, "text_layers": 1, "embed_dim": 64}
WILD = [
    ("image_size", [64], "image_size"),
    ("image_size", [64.5, 32], "image_size: wanted a count of at most 8192, got 64.5"),
    ("image_size", [2**62, 8], "image_size: wanted a count of at most 8192"),
    ("image_size", None, "object is not iterable"),
    ("patch", 0, "stride must be in 1..0"),
    ("patch", -1, "patch: wanted a count"),
    ("patch", "8", "no usable model config"),
    ("patch", True, "patch: wanted a count of at most 65536, got True"),
    ("stride", 2**62, "stride: wanted a count"),
    ("image_width", 63, "image_width must be a multiple of 64: 63"),
    ("image_layers", 10**9, "image_layers: wanted a count of at most 1000"),
    (
        "image_layers",
        [[[]]],
        "image_layers: wanted a count of at most 1000, got [[[]]]",
    ),
    ("vocab_size", 10**15, "vocab_size: wanted a count"),
    ("vocab_size", 0, "vocab_size must be at least 1"),
    ("context_length", 1e300, "context_length: wanted a count"),
    ("classes", -1, "classes: wanted a count"),
    ("irr_layers", 2**70, "irr_layers: wanted a count"),
    ("tse_width", 1, "tse_width must be even"),
    ("tse_ratio", "half", "no usable model config"),
    ("tse_ratio", [0.3], "no usable model config"),
    ("dtype", "float64", "dtype must be one of"),
    ("activation", "relu", "activation"),
    ("wings", 2, "wings"),
]


def native(config: str, **metadata: str) -> bytes:
    told = {"format": "fmfa_jax", "version": "1", "config": config} | metadata
    return safetensors({"__metadata__": told, "w": ENTRY_F32})


NATIVE = [
    *((native(json.dumps(SIZES | {key: value})), said) for key, value, said in WILD),
    (native(json.dumps(SIZES)), "missing: image_tower/class_token"),
    (native(DEEP), "no usable model config"),
    (native("[]"), "no usable model config"),
    (native("null"), "no usable model config"),
    (native("{}"), "no usable model config: 'image_size'"),
    (native("9" * 5000), "no usable model config"),
    (native("\\"), "no usable model config"),
    (native("{}", version="3"), "has version 3 of our format"),
    (native("{}", version="\x1b" * 9999), r"has version \x1b"),
]


def read(folder: Path, content: bytes) -> object:
    path = folder / "m.pt"
    path.write_bytes(content)
    return weights.load_params(path, image_size=(64, 32), stride=8)


READERS = [
    Reader(
        "weights",
        read,
        weights.WeightsError,
        [(archive(program), said) for program, said in PROGRAMS]
        + FILES
        + [(safetensors(header), said) for header, said in SAFETENSORS]
        + OTHER_SAFETENSORS
        + NATIVE,
    )
]
assert DATA
