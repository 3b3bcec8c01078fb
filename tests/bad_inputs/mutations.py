# SPDX-License-Identifier: Apache-2.0
"""Valid inputs made bad at random; each is a function of a `random.Random`."""

import json
import struct
from collections.abc import Sequence
from random import Random
from typing import Any

from tests.bad_inputs.programs import name, number, several, storage, tensor, text

Regions = Sequence[tuple[int, int]]

PIECES = (
    *(b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff", b"\xff" * 4, b"\xff" * 8),
    *(b"\x00" * 8, b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f", b"PK\x01\x02", b"PK"),
    *(b"N", b"]", b"}", b")", b"R", b"b", b"Q", b"\x81", b"0", b"2", b"1", b"t"),
    *(b"\x85", b"\x86", b"e", b"s", b"u", b"h\x01", b"q\x01", b"K\x00", b"\x88", b"."),
    *(b"J\xff\xff\xff\xff", b"\x8a\x01\xff", b"G\x7f\xf8" + bytes(6), b"\xed\xa0\x80"),
    *(b"[", b"{", b'"', b",", b":", b"-", b"9", b"e9", b"null", b"true", b"NaN"),
    *(b"1e999", b"[" * 2000, b"9" * 5000, b"\\ud800", b"\\u0000", b"\n", b"\r"),
    *(b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\x1b[2J", b"../", b"/etc/passwd"),
)


def mutated(draw: Random, data: bytes, regions: Regions = ()) -> bytes:
    """Change a few bytes, above all within the regions (start, stop)."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        low, high = draw.choice(regions or ((0, len(made)),))
        high = min(high, len(made))
        if low < high:
            _change(draw, made, draw.randrange(low, high), (low, high))
    return bytes(made)


def _change(draw: Random, made: bytearray, at: int, within: tuple[int, int]) -> None:
    length = draw.choice((1, 1, 2, 4, 16, 200))
    other = draw.randrange(*within)
    piece = draw.choice(PIECES)
    kind = draw.randrange(8)
    if kind == 0:
        made[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        made[at] = draw.randrange(256)
    elif kind == 2:
        made[at : at + len(piece)] = piece
    elif kind == 3:
        made[at:at] = piece
    elif kind == 4:
        del made[at : at + length]
    elif kind == 5:
        made[at:at] = made[other : other + length]
    elif kind == 6:
        made[at : at + length] = made[other : other + length]
    elif draw.random() < 0.2:
        del made[at:]


def _deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 2**31, 2**63, 2**64, 10**30, 10**400),
    *(1.5, -0.0, 1e300, float("nan"), float("inf"), -float("inf")),
    *("", " ", "1", "01", "\0", "\ud800", "../x", "/etc/passwd", ".", "a" * 300),
    *("train", "TEST", "\x1b[2J", "\u202e", "é", "e\u0301", "x" * 5000, "a\nb"),
    *([], [[]], {}, {"a": 1}, ["a"], [1], ["\udfff"], [None], [0] * 1000, _deep(400)),
)


def mutated_value(draw: Random, value: Any) -> Any:
    """Change a value of JSON somewhere."""
    chance = draw.random()
    if isinstance(value, list) and value and chance > 0.15:
        return _mutated_list(draw, list(value), chance)
    if isinstance(value, dict) and value and chance > 0.15:
        return _mutated_dict(draw, dict(value), chance)
    if isinstance(value, str) and chance > 0.5:
        changes = (value + "\0", value * 50, value.upper(), "../" + value, value[::-1])
        return draw.choice((*changes, value + "\ud800", value[:-1], [value]))
    if type(value) is int and abs(value) < 10**300 and chance > 0.5:
        return draw.choice((value + 1, -value, value * 10**9, str(value), value + 0.5))
    return draw.choice(VALUES)


def _mutated_list(draw: Random, values: list[Any], chance: float) -> list[Any]:
    place = draw.randrange(len(values))
    if chance < 0.25:
        del values[place]
    elif chance < 0.35:
        values.insert(place, draw.choice(VALUES))
    elif chance < 0.4:
        values += values
    else:
        values[place] = mutated_value(draw, values[place])
    return values


def _mutated_dict(draw: Random, values: dict[str, Any], chance: float) -> dict:
    key = draw.choice(list(values))
    if chance < 0.25:
        del values[key]
    elif chance < 0.35:
        values[draw.choice((*values, "x", "", "\x1b[2J"))] = draw.choice(VALUES)
    else:
        values[key] = mutated_value(draw, values[key])
    return values


def mutated_json(draw: Random, value: Any) -> bytes:
    """Change a value, its text, or both."""
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        value = mutated_value(draw, value)
    encoded = json.dumps(value).encode()
    return mutated(draw, encoded) if draw.random() < 0.3 else encoded


_OPCODES = (
    *(b"N", b"]", b"}", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"e", b"a", b"s"),
    *(b"u", b"R", b"R", b"b", b"b", b"\x81", b"\x92", b"Q", b"Q", b"0", b"1", b"2"),
    *(b"\x88", b"\x89", b"d", b"l", b"\x8f", b"\x90", b"\x91", b"\x93", b"\x94", b"o"),
    *(b"h\x00", b"h\x01", b"h\x02", b"h\x03", b"q\x00", b"K\x00", b"K\x01", b"K\x06"),
    *(b"J\xff\xff\xff\xff", number(2**63), number(2**2000), b"G\x7f\xf8" + bytes(6)),
)
_WORDS = tuple(
    text(word)
    for word in "w storage 0 cpu model state_dict numel dtype key shape strides offset "
    "_metadata attributes name items __class__ __dict__ __setstate__".split()
)
_NAMES = tuple(
    name(*place.rsplit(".", 1))
    for place in "torch._utils._rebuild_tensor_v2 torch._utils._rebuild_parameter "
    "torch._tensor._rebuild_from_type_v2 collections.OrderedDict collections.Counter "
    "builtins.set torch.Size torch.device torch.FloatStorage torch.BFloat16Storage "
    "__torch__.M torch.jit._pickle.build_intlist torch.jit._pickle.restore_type_tag "
    "argparse.Namespace pathlib.PosixPath os.system builtins.eval easydict.EasyDict "
    "torch.nn.modules.linear.Linear".split()
)
_CHUNKS = (
    *(
        storage(),
        tensor(),
        several(b"K\x02", b"K\x03"),
        name("__torch__", "M") + b")\x81",
    ),
    *(b"}" + text("numel") + b"K\x09s", name("collections", "OrderedDict") + b")R"),
    *(tensor(shape=b"K\x02K\x03\x86", strides=b"K\x03K\x01\x86"), several(b"K\x06")),
)


def program(draw: Random) -> bytes:
    """Return a pickle of random instructions."""
    made = draw.choice((b"\x80\x04", b"\x80\x02"))
    if draw.random() < 0.7:
        made += b"}" + text("w")
    kinds = (_OPCODES, _WORDS, _NAMES, _CHUNKS)
    for _ in range(draw.randrange(2, 30)):
        made += draw.choice(draw.choices(kinds, (10, 3, 3, 4))[0])
    return made + (b"s" if draw.random() < 0.5 else b"") + b"."


def zip_regions(whole: bytes) -> Regions:
    """Where an archive's pickle, table of contents and end lie."""
    start = whole.index(b"data.pkl") + len(b"data.pkl")
    stop = whole.index(b"PK\x03\x04", start)
    end = whole.rindex(b"PK\x05\x06")
    (table,) = struct.unpack_from("<I", whole, end + 16)
    return (*[(start, stop)] * 5, *[(table, end)] * 3, (end, len(whole)), (0, stop))
