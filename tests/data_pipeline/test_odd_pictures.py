# SPDX-License-Identifier: Apache-2.0
"""Pictures whose pixels are whole while something else about them is odd."""

import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_pipeline import colours, images
from data_pipeline.images import ImageError, decode, header, inspect
from tests.data_pipeline.test_images import encoded, picture

# What images.py asks for on import, and pytest overrides.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

UPRIGHT = picture(60, 24)
JPEG, PNG = encoded(UPRIGHT, "JPEG"), encoded(UPRIGHT, "PNG")


def app1(payload: bytes) -> bytes:
    """Return the JPEG with an APP1 segment."""
    return (
        JPEG[:2]
        + b"\xff\xe1"
        + struct.pack(">H", len(payload) + 2)
        + payload
        + JPEG[2:]
    )


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Return EXIF with one table of (tag, type, count, value)."""
    rows = b"".join(struct.pack("<HHI", *e[:3]) + e[3] for e in entries)
    return (
        b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + bytes(4)
    )


def chunk(kind: bytes, body: bytes, *, sound: bool = True) -> bytes:
    crc = zlib.crc32(kind + body) ^ (not sound)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def with_chunk(*chunks: bytes) -> bytes:
    """Return the PNG with chunks after its header."""
    return PNG[:33] + b"".join(chunks) + PNG[33:]


TURNED = (0x112, 3, 1, b"\x06\0\0\0")
UNREADABLE_METADATA = {
    "mark only": app1(b"Exif\0\0"),
    "no table": app1(b"Exif\0\0rubbish"),
    "cut table": app1(b"Exif\0\0II*\0"),
    "table outside": app1(b"Exif\0\0II*\0" + struct.pack("<I", 99999)),
    "as a text": app1(b"b'Exif\\x00'"),
    "huge count": app1(exif((0x10F, 2, 2**31 - 1, b"2\0\0\0"))),
    "orientation 9": app1(exif((0x112, 3, 1, b"\x09\0\0\0"))),
    "orientation in letters": app1(exif((0x112, 2, 2, b"6\0\0\0"))),
    "comment": JPEG[:2] + b"\xff\xfe\x00\x05\xff\xd8\x00" + JPEG[2:],
    "png exif": with_chunk(chunk(b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03rubbish")),
    "png text": with_chunk(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**21)))),
    "png texts": with_chunk(
        *[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**6)))] * 80
    ),
    "png checksum": with_chunk(chunk(b"tEXt", b"k\0x", sound=False)),
    "png profile": with_chunk(chunk(b"iCCP", b"x\0\0rubbish")),
    "png end": PNG[:-12],
    "jpeg profile": encoded(UPRIGHT, "JPEG", icc_profile=b"rubbish"),
    "jpeg tail": JPEG + bytes(5000),
    "jpeg end": JPEG[:-2],
    "jpeg half end": JPEG[:-1],
}


@pytest.mark.parametrize("name", UNREADABLE_METADATA)
def test_metadata_never_costs_the_pixels(name: str) -> None:
    whole = JPEG if UNREADABLE_METADATA[name].startswith(JPEG[:2]) else PNG
    assert np.array_equal(decode(UNREADABLE_METADATA[name]), decode(whole))
    assert header(UNREADABLE_METADATA[name]) == (60, 24)


BESIDE_THE_ORIENTATION = {
    "rational outside": (0x11A, 5, 1, struct.pack("<I", 99999)),
    "unknown type": (0x11A, 99, 1, bytes(4)),
    "position outside": (0x8825, 4, 1, struct.pack("<I", 99999)),
    "table in itself": (0x8769, 4, 1, struct.pack("<I", 4)),
    "letters for a number": (0x11A, 2, 4, b"abcd"),
}


@pytest.mark.parametrize("name", BESIDE_THE_ORIENTATION)
def test_the_orientation_counts_beside_other_damage(name: str) -> None:
    turned = app1(exif(TURNED, BESIDE_THE_ORIENTATION[name]))
    assert np.array_equal(decode(turned), np.rot90(decode(JPEG), -1))
    for kind in (b"tEXt", b"iCCP"):
        chunks = (chunk(b"eXIf", exif(TURNED)[6:]), chunk(kind, b"x", sound=False))
        assert np.array_equal(decode(with_chunk(*chunks)), np.rot90(UPRIGHT, -1))


ENCODERS = {
    "baseline": {},
    "one colour a block": {"subsampling": 0, "quality": 95},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 2},
}


@pytest.mark.parametrize("options", ENCODERS.values(), ids=ENCODERS.keys())
def test_a_cut_jpeg_is_read_only_if_every_row_is_there(options: dict) -> None:
    """The oracle is the whole file; the ends of scans and rows are cut finely."""
    seen = [read_if_whole(encoded(picture(*p), "JPEG", **options)) for p in PICTURES]
    assert all(2 <= read < 20 for read in seen)


PICTURES = ((96, 32, 5), (67, 40, 2))


def read_if_whole(whole: bytes) -> int:
    """Check every cut against the whole file; return how many are read."""
    wanted, read = decode(whole), 0
    cuts = {*range(1, 60), *random.Random(0).sample(range(60, len(whole) - 600), 20)}
    for cut in sorted(cuts):
        try:
            got = decode(whole[:-cut])
        except ImageError as error:
            assert "truncated" in str(error).lower()
            continue
        assert np.array_equal(got, wanted), cut
        read += 1
    return read


def profile(swap: bool = False) -> bytes:
    """Return an sRGB profile, or one that takes red for blue."""
    body = bytearray(ImageCms.ImageCmsProfile(colours._SRGB).tobytes())
    for place in range(132, 132 + 12 * struct.unpack_from(">I", body, 128)[0], 12):
        names = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"} if swap else {}
        tag = bytes(body[place : place + 4])
        body[place : place + 4] = names.get(tag, tag)
    return bytes(body)


def clear(image: Image.Image, value: object) -> Image.Image:
    image.putalpha(Image.fromarray(np.full((60, 24), value, np.uint8)))
    return image


def test_profiles_become_srgb() -> None:
    swapped = Image.fromarray(np.asarray(UPRIGHT)[..., ::-1])
    for data in (
        encoded(swapped, "PNG", icc_profile=profile(swap=True)),
        encoded(clear(swapped, 255), "PNG", icc_profile=profile(swap=True)),
    ):
        assert np.abs(decode(data).astype(int) - np.asarray(UPRIGHT)).max() <= 3
        assert inspect(data).profile == "converted"
    # What is clear stays clear: half of this is white.
    data = encoded(clear(swapped, 128), "PNG", icc_profile=profile(swap=True))
    half = (np.asarray(UPRIGHT).astype(int) + 254) / 2
    assert np.abs(decode(data) - half).max() <= 3
    # Most files say sRGB: their pixels are what they were.
    said = encoded(UPRIGHT, "PNG", icc_profile=profile())
    assert np.array_equal(decode(said), UPRIGHT) and inspect(said).profile == "sRGB"
    assert inspect(PNG).profile == "none"


@pytest.mark.parametrize("body", [b"rubbish", bytes(5 << 20)], ids=["bad", "large"])
def test_broken_profiles_are_ignored_and_counted(body: bytes) -> None:
    broken = encoded(UPRIGHT, "JPEG", icc_profile=body)
    assert np.array_equal(decode(broken), decode(JPEG))
    assert inspect(broken).profile == "ignored"
    # One for other colours than the picture has.
    grey = encoded(UPRIGHT.convert("L"), "PNG", icc_profile=profile(swap=True))
    assert np.array_equal(decode(grey)[..., 1], UPRIGHT.convert("L"))
    assert inspect(grey).profile == "ignored"


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_grey_is_scaled_by_its_depth(bits: int) -> None:
    grey = np.asarray(UPRIGHT.convert("L")).astype(np.uint16).copy()
    grey[0, 0] = 255
    deep = Image.fromarray(grey << bits - 8)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(decode(encoded(deep, kind))[..., 0], grey), kind


def test_what_is_clear_is_white() -> None:
    hidden = Image.new("RGB", (24, 60), (255, 0, 255))
    white = np.full((60, 24, 3), 255)
    for mode, kind in (("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP")):
        data = encoded(clear(hidden.convert(mode), 0), kind, **lossless(kind))
        assert np.array_equal(decode(data), white), (mode, kind)
        # Alpha that hides nothing changes no bit.
        opaque = clear(UPRIGHT.convert(mode), 255)
        data = encoded(opaque, kind, **lossless(kind))
        assert np.array_equal(decode(data), opaque.convert("RGB")), (mode, kind)
    keyed = encoded(hidden, "PNG", transparency=(255, 0, 255))
    assert np.array_equal(decode(keyed), white)


def lossless(kind: str) -> dict[str, object]:
    return {"lossless": True, "exact": True} if kind == "WEBP" else {}


def test_avif_is_read() -> None:
    red = Image.new("RGB", (24, 60), (200, 30, 30))
    got = decode(encoded(red, "AVIF")).astype(int)
    assert np.abs(got - np.asarray(red)).max() < 6
    assert {".avif", ".jfif", ".jpe"} <= images.SUFFIXES


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"\x1b]0;x\x07", "6 bytes that are no picture: wanted JPEG"),
    ],
)
@pytest.mark.parametrize("read", [decode, header, inspect])
def test_what_is_no_picture_is_named(read: Callable, data: bytes, shown: str) -> None:
    with pytest.raises(ImageError, match=shown) as caught:
        read(data)
    assert str(caught.value).isprintable()
