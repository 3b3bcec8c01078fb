# SPDX-License-Identifier: Apache-2.0
"""Decode encoded pictures to uint8 RGB arrays with Pillow.

Pillow does all the work because it proved the cheapest way to get its own pixels: for
a 200x500 JPEG `tf.io.decode_jpeg` costs the same, and antialiased `tf.image.resize`
costs more than twice as much as Pillow's fixed-point resize. Both steps release the
GIL. DCT-scaled decoding (`Image.draft`) is not exact and therefore not used.
"""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

VERSION = 1
"""Raised by whoever changes the pixels that `decode_resized` returns; part of the name
of a cache on disk."""

MAX_PIXELS = 64_000_000
"""Pictures whose header declares more pixels are rejected before decoding."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The accepted file formats: some of Pillow's other decoders can run programs."""

Image.init()  # registers the formats that Pillow otherwise only loads on demand

_ORIENTATION = 0x0112  # EXIF tag; 1 means upright
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class ImageError(ValueError):
    """Raised when a picture cannot be decoded; the message says why."""


def decode(
    encoded: bytes, *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode a picture to upright RGB.

    EXIF orientation is applied. Grey, palette, CMYK and 16-bit pictures become 8-bit
    RGB; transparency is dropped, as in Pillow's `convert("RGB")`; an animation yields
    its first frame.

    Args:
        encoded: The file's bytes.
        max_pixels: Largest number of pixels that the header may declare.

    Raises:
        ImageError: If the bytes are not a picture, are damaged or truncated, or declare
            more than `max_pixels`.
    """
    return np.array(_open(encoded, max_pixels))


def resize(
    pixels: UInt8[np.ndarray, "H W 3"], image_size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Resize a picture to (height, width) by Pillow's antialiased bilinear filter."""
    return np.array(_resized(Image.fromarray(pixels), image_size))


def decode_resized(
    encoded: bytes, image_size: tuple[int, int], *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
    """Return `resize(decode(encoded), image_size)` without the copy in between.

    Args:
        encoded: The file's bytes.
        image_size: (height, width) of the result.
        max_pixels: Largest number of pixels that the header may declare.

    Raises:
        ImageError: See `decode`.
    """
    return np.asarray(_resized(_open(encoded, max_pixels), image_size))


def load(
    path: str | Path, image_size: tuple[int, int], *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
    """Read a picture from a file and resize it to (height, width).

    Args:
        path: The file.
        image_size: (height, width) of the result.
        max_pixels: Largest number of pixels that the header may declare.

    Raises:
        ImageError: See `decode`; the message names the file.
        OSError: If the file cannot be read.
    """
    encoded = Path(path).read_bytes()
    try:
        return decode_resized(encoded, image_size, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def _open(encoded: bytes, max_pixels: int) -> Image.Image:
    """Decode to a Pillow image of mode RGB."""
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
    # On damaged files Pillow's parsers raise nearly anything: OSError, SyntaxError,
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
            f"its header declares {image.width} x {image.height} = {pixels} pixels, "
            f"wanted at most {max_pixels}: shrink the picture"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP_GREY:
        # Pillow's own conversion clips at 255, which would turn the picture white.
        deep = np.clip(np.asarray(image), 0, 65535)
        image = Image.fromarray((deep >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ImageError("has floating-point grey levels: wanted 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        # Same colours as the direct conversion, which warns about the lost alpha.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _resized(image: Image.Image, image_size: tuple[int, int]) -> Image.Image:
    height, width = image_size
    if height < 1 or width < 1:
        raise ValueError(f"image size {image_size}: wanted a positive (height, width)")
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
