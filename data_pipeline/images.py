# SPDX-License-Identifier: Apache-2.0
"""Encoded pictures to uint8 RGB arrays, by Pillow.

Pillow alone does the work because it was measured to be the cheapest way to its own
pixels: for a JPEG of 200x500 `tf.io.decode_jpeg` costs the same, and `tf.image.resize`
with antialiasing more than twice what Pillow's fixed-point resize costs. Both steps
release the GIL. DCT-scaled decoding (`Image.draft`) is not exact, so it is not used.
"""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000
"""A picture whose header states more pixels is refused before it is decoded."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The containers that are opened: some of Pillow's others can run programs."""

Image.init()  # registers those formats that Pillow would only know later

_ORIENTATION = 0x0112  # EXIF tag; 1 means upright
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class ImageError(ValueError):
    """A picture cannot be decoded; the message says why."""


def decode(
    encoded: bytes, *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode a picture to upright RGB.

    EXIF orientation is applied. Grey, palette, CMYK and 16-bit pictures become 8-bit
    RGB; transparency is dropped, as Pillow's `convert("RGB")` does; an animation gives
    its first frame.

    Args:
        encoded: the file's bytes.
        max_pixels: the most pixels that the header may state.

    Raises:
        ImageError: not a picture, damaged, truncated, or more than `max_pixels`.
    """
    return np.array(_open(encoded, max_pixels))


def resize(
    pixels: UInt8[np.ndarray, "H W 3"], image_size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Resize a picture to (height, width): bilinear, antialiased, as Pillow does."""
    return np.array(_resized(Image.fromarray(pixels), image_size))


def decode_resized(
    encoded: bytes, image_size: tuple[int, int], *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
    """Return `resize(decode(encoded), image_size)` without the copy between.

    Args:
        encoded: the file's bytes.
        image_size: (height, width) wanted.
        max_pixels: the most pixels that the header may state.

    Raises:
        ImageError: as `decode`.
    """
    return np.asarray(_resized(_open(encoded, max_pixels), image_size))


def load(
    path: str | Path, image_size: tuple[int, int], *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
    """Read a picture's file, decode and resize it to (height, width).

    Args:
        path: the file.
        image_size: (height, width) wanted.
        max_pixels: the most pixels that the header may state.

    Raises:
        ImageError: as `decode`; the message names the file.
        OSError: the file cannot be read.
    """
    encoded = Path(path).read_bytes()
    try:
        return decode_resized(encoded, image_size, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def _open(encoded: bytes, max_pixels: int) -> Image.Image:
    """Decode to a Pillow image in mode RGB."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        _check_size(image, max_pixels)
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        image.load()
        return image if image.mode == "RGB" else _to_rgb(image)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"more than {max_pixels} pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{len(encoded)} bytes that are no picture: wanted {', '.join(FORMATS)}"
        ) from error
    # Damaged files make Pillow's parsers raise nearly anything: OSError, SyntaxError,
    # ValueError, struct.error, zlib.error, IndexError, ...
    except Exception as error:
        raise ImageError(
            f"cannot be decoded ({len(encoded)} bytes): {type(error).__name__}: "
            f"{_first_line(error)}"
        ) from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageError(
            f"its header states {image.width} x {image.height} = {pixels} pixels, "
            f"wanted at most {max_pixels}: shrink the picture"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP_GREY:
        # Pillow's own conversion clips at 255, which makes such a picture white.
        deep = np.clip(np.asarray(image), 0, 65535)
        image = Image.fromarray((deep >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ImageError("holds floating-point grey levels: wanted 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        # The same colours as the direct conversion, which warns about the loss.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _resized(image: Image.Image, image_size: tuple[int, int]) -> Image.Image:
    height, width = image_size
    if height < 1 or width < 1:
        raise ValueError(f"image size {image_size}: wanted a positive (height, width)")
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
