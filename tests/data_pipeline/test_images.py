# SPDX-License-Identifier: Apache-2.0
"""Decoded and resized pixels against Pillow's; unusual files against known colours."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_pipeline import images
from data_pipeline.images import ImageError

SIZE = (48, 16)


def picture(height: int = 61, width: int = 23, seed: int = 0) -> Image.Image:
    """Return a picture with coarse and fine structure."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (7, 3, 3), dtype=np.uint8)
    grown = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = draw.integers(-20, 20, (height, width, 3))
    return Image.fromarray(
        np.clip(np.asarray(grown).astype(int) + noise, 0, 255).astype(np.uint8)
    )


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reference(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """Resize as a Pillow user would."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return np.array(image.resize(size[::-1], Image.Resampling.BILINEAR))


def antialiased(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize by definition: triangle filters as wide as the scale, in float64."""
    result = pixels.astype(np.float64)
    for axis, wanted in enumerate(size):
        scale = result.shape[axis] / wanted
        width = max(scale, 1.0)
        centres = (np.arange(wanted) + 0.5) * scale
        at = np.arange(result.shape[axis]) + 0.5
        weights = np.maximum(0, 1 - np.abs(at - centres[:, None]) / width)
        weights /= weights.sum(1, keepdims=True)
        result = np.moveaxis(np.tensordot(weights, result, (1, axis)), 0, axis)
    return result


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("shape", [(61, 23), (200, 90), (20, 7), (48, 16), (1, 1)])
def test_jpegs_equal_pillow(shape: tuple[int, int], subsampling: int) -> None:
    data = encoded(picture(*shape), "JPEG", quality=85, subsampling=subsampling)
    wanted = reference(data, SIZE)
    assert np.array_equal(images.decode_resized(data, SIZE), wanted)
    assert np.array_equal(images.resize(images.decode(data), SIZE), wanted)
    assert images.decode(data).shape == (*shape, 3)


def test_resizing_is_antialiased_bilinear_within_one_level() -> None:
    for shape in [(61, 23), (200, 90), (20, 7)]:
        pixels = np.asarray(picture(*shape))
        exact = antialiased(pixels, SIZE)
        assert np.abs(images.resize(pixels, SIZE) - exact).max() <= 1.0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture()
    turned = encoded(upright, "PNG", exif=exif)
    shape = (61, 23, 3) if orientation < 5 else (23, 61, 3)
    assert images.decode(turned).shape == shape
    assert np.array_equal(images.decode_resized(turned, SIZE), reference(turned, SIZE))
    data = encoded(upright, "JPEG", exif=exif)
    assert np.array_equal(images.decode_resized(data, SIZE), reference(data, SIZE))
    if orientation == 6:  # the camera was turned: the file's left side is the top
        wanted = np.rot90(np.asarray(upright), -1)
        assert np.array_equal(images.decode(turned), wanted)


def two_tone(mode: str, dark: object, light: object) -> Image.Image:
    image = Image.new(mode, (16, 48), dark)
    image.paste(light, (0, 0, 16, 24))
    return image


def test_other_modes_become_rgb() -> None:
    palette = two_tone("P", 0, 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    deep = Image.fromarray(
        np.repeat(np.uint16([0xFEDC, 0x1234]), 24 * 16).reshape(48, 16)
    )
    assert deep.mode == "I;16"
    cases = {
        "grey": (encoded(two_tone("L", 7, 250), "PNG"), (250,) * 3, (7,) * 3),
        "bits": (encoded(two_tone("1", 0, 1), "PNG"), (255,) * 3, (0,) * 3),
        "grey jpeg": (encoded(two_tone("L", 7, 250), "JPEG"), (250,) * 3, (7,) * 3),
        "alpha": (
            encoded(two_tone("RGBA", (1, 2, 3, 0), (9, 8, 7, 128)), "PNG"),
            (132, 131, 131),  # half of it shows the white below
            (255, 255, 255),
        ),
        "palette": (encoded(palette, "PNG"), (200, 100, 50), (10, 20, 30)),
        "one clear colour": (
            encoded(palette, "PNG", transparency=1),
            (255, 255, 255),
            (10, 20, 30),
        ),
        "clear palette": (
            encoded(palette, "PNG", transparency=bytes([0, 128])),
            (227, 177, 152),
            (255, 255, 255),
        ),
        "gif": (encoded(palette, "GIF"), (200, 100, 50), (10, 20, 30)),
        "16 bits": (
            encoded(deep, "PNG"),
            (0xFE,) * 3,
            (0x12,) * 3,
        ),
        "16 bits, tiff": (
            encoded(deep, "TIFF"),
            (0xFE,) * 3,
            (0x12,) * 3,
        ),
    }
    for name, (data, above, below) in cases.items():
        pixels = images.decode(data)
        assert pixels.shape == (48, 16, 3) and pixels.dtype == np.uint8, name
        assert tuple(pixels[2, 3]) == above and tuple(pixels[45, 3]) == below, name


def test_cmyk_jpegs_become_rgb() -> None:
    image = two_tone("CMYK", (0, 255, 255, 0), (255, 0, 0, 0))
    data = encoded(image, "JPEG", quality=95)
    pixels = images.decode(data).astype(int)
    assert np.abs(pixels[2, 3] - (0, 255, 255)).max() < 12
    assert np.abs(pixels[45, 3] - (255, 0, 0)).max() < 12
    assert np.array_equal(images.decode_resized(data, SIZE), reference(data, SIZE))


def png(width: int, height: int, colour: int, rows: bytes) -> bytes:
    """Return a PNG with 16 bits per channel, which Pillow itself cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def test_sixteen_bit_colour_keeps_its_high_bytes() -> None:
    row = b"\0" + struct.pack(">HHH", 0x12FF, 0x8000, 0xFFFF)
    assert images.decode(png(1, 1, 2, row)).tolist() == [[[0x12, 0x80, 0xFF]]]


def test_the_header_is_checked_before_decoding() -> None:
    data = encoded(picture(61, 23), "PNG")
    with pytest.raises(ImageError, match=r"23 x 61 = 1403 pixels, wanted at most 1402"):
        images.decode(data, max_pixels=1402)
    assert images.decode(data, max_pixels=1403).shape == (61, 23, 3)
    # Only the header counts: these files contain no pixels at all.
    for side in (10_000, 30_000):
        with pytest.raises(ImageError, match=r"more than 64000000 pix|64000000: shr"):
            images.decode(png(side, side, 2, b""))


def test_damaged_files_say_why(tmp_path: Path) -> None:
    whole = encoded(picture(200, 90), "JPEG")
    with pytest.raises(ImageError, match="truncated"):
        images.decode(whole[: len(whole) // 2])
    for rubbish in (b"", b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        with pytest.raises(ImageError, match=f"{len(rubbish)} bytes that are no pict"):
            images.decode(rubbish)
    (tmp_path / "x.jpg").write_bytes(whole[:300])
    with pytest.raises(ImageError, match=r"x.jpg: cannot be decoded \(300 bytes\)"):
        images.load(tmp_path / "x.jpg", SIZE)
    (tmp_path / "y.jpg").write_bytes(whole)
    assert np.array_equal(
        images.load(tmp_path / "y.jpg", SIZE), images.decode_resized(whole, SIZE)
    )
    with pytest.raises(FileNotFoundError):
        images.load(tmp_path / "none.jpg", SIZE)


def test_unusable_sizes_and_depths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image size \(0, 5\)"):
        images.resize(np.zeros((2, 2, 3), np.uint8), (0, 5))
    data = encoded(Image.new("F", (4, 4), 0.5), "TIFF")
    with pytest.raises(ImageError, match="floating-point grey levels"):
        images.decode(data)
