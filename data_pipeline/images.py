# SPDX-License-Identifier: Apache-2.0
"""Decode encoded pictures to uint8 RGB arrays with Pillow.

Pillow does all the work because it proved the cheapest way to get its own pixels: for
a 200x500 JPEG `tf.io.decode_jpeg` costs the same, and antialiased `tf.image.resize`
costs more than twice as much as Pillow's fixed-point resize. Both steps release the
GIL. DCT-scaled decoding (`Image.draft`) is not exact and therefore not used.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from data_pipeline import jpeg
from data_pipeline.colours import ColourError, profile_of, to_rgb
from data_pipeline.hints import printable
from data_pipeline.metadata import without_metadata
from data_pipeline.regular import read_regular

MAX_PIXELS = 64_000_000
"""Pictures whose header declares more pixels are rejected before decoding."""

VERSION = 2
"""Raised by whoever changes the pixels that `decode_resized` returns; part of the name
of a cache on disk."""

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")
"""The accepted file formats: some of Pillow's other decoders can run programs."""

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .avif .bmp .gif .tif .tiff .ppm".split()
)
"""What names of such files end in, in lower case; how one is read, its content says."""

Image.init()  # registers the formats that Pillow otherwise only loads on demand
# Damaged metadata does not count, and sizes have a limit of our own.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_ORIENTATION = 0x0112  # EXIF tag; 1 means upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """Raised when a picture cannot be decoded; the message says why."""

    def __init__(self, message: str) -> None:
        """Keep the message, safe to print."""
        super().__init__(printable(message))


@dataclass(frozen=True)
class Facts:
    """What a picture is in its file.

    Attributes:
        kind: One of `FORMATS`.
        mode: Pillow's name for its kind of pixels, such as "RGB", "RGBA" or "I;16".
        height: As stored.
        width: As stored.
        profile: What becomes of its colour profile; see `colours.profile_of`.
        mended: Whether its metadata is damaged, or its end is missing.
    """

    kind: str
    mode: str
    height: int
    width: int
    profile: str
    mended: bool


def decode(
    encoded: bytes, *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode a picture to upright RGB.

    EXIF orientation is applied. Pictures of all modes become 8-bit sRGB, see
    `colours.to_rgb`; an animation yields its first frame. Metadata that is damaged does
    not count, and neither does a missing end of file if every pixel is there.

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
    encoded = read_regular(path)
    try:
        return decode_resized(encoded, image_size, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def header(encoded: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the (height, width) that the header declares, without decoding.

    Raises:
        ImageError: If the bytes are not a picture, or it is too large.
    """
    image = _salvaged(encoded, lambda data: _opened(data, max_pixels))
    return image.height, image.width


def inspect(encoded: bytes) -> Facts:
    """Decode a picture as `decode` does, and return what it was before.

    Raises:
        ImageError: See `decode`.
    """
    mended = False
    try:
        image = _loaded(encoded, MAX_PIXELS)
    except Exception:
        image = _salvaged(encoded, lambda data: _loaded(data, MAX_PIXELS))
        mended = True
    _rgb(encoded, image)
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    profile = profile_of(image)
    return Facts(kind, image.mode, image.height, image.width, profile, mended)


def _open(encoded: bytes, max_pixels: int) -> Image.Image:
    """Decode to an upright Pillow image of mode RGB."""
    image = _salvaged(encoded, lambda data: _loaded(data, max_pixels))
    turn = _TURNS.get(_orientation(image))
    image = _rgb(encoded, image)
    return image if turn is None else image.transpose(turn)


def _salvaged(encoded: bytes, read: Callable[[bytes], Image.Image]) -> Image.Image:
    """Read a picture; where that fails, see whether its pixels are whole."""
    with _explained(encoded):
        try:
            return read(encoded)
        except ImageError:
            raise
        except Exception:
            for bare in without_metadata(encoded):
                with contextlib.suppress(Exception):
                    return read(bare)
            if (complete := _completed(encoded)) is not None:
                return read(complete)
            raise


def _opened(encoded: bytes, max_pixels: int) -> Image.Image:
    image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    _check_size(image, max_pixels)
    return image


def _loaded(encoded: bytes, max_pixels: int) -> Image.Image:
    image = _opened(encoded, max_pixels)
    image.load()
    return image


def _rgb(encoded: bytes, image: Image.Image) -> Image.Image:
    with _explained(encoded):
        return to_rgb(image)


def _completed(encoded: bytes) -> bytes | None:
    """Return a JPEG that lacks no more than its end, with an end; otherwise None."""
    if not encoded.startswith(jpeg.START):
        return None
    pixels, ended = None, None
    for ended in jpeg.endings(encoded):
        try:
            these = _loaded(ended, MAX_PIXELS).tobytes()
        except Exception:
            return None
        if pixels is not None and these != pixels:
            return None
        pixels = these
    return ended


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1, upright, if it cannot be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    # Of damaged tables Pillow's parser raises nearly anything.
    except Exception:
        return 1
    return found if isinstance(found, int) else 1


@contextlib.contextmanager
def _explained(encoded: bytes) -> Iterator[None]:
    """Turn whatever Pillow raises into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except ColourError as error:
        raise ImageError(str(error)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"more than {MAX_PIXELS} pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{len(encoded)} bytes that are no picture{_likeness(encoded)}: wanted "
            f"{', '.join(FORMATS)}"
        ) from error
    # On damaged files Pillow's parsers raise nearly anything: OSError, SyntaxError,
    # ValueError, struct.error, zlib.error, IndexError, ...
    except Exception as error:
        raise ImageError(
            f"cannot be decoded ({len(encoded)} bytes): {type(error).__name__}: "
            f"{_first_line(error)}"
        ) from error


def _likeness(encoded: bytes) -> str:
    """Return what bytes that are no picture look like, for a message."""
    start = encoded[:200].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return " but a pointer of Git LFS (fetch the file with git lfs pull)"
    if start.startswith((b"<!doctype html", b"<html")):
        return " but a web page"
    return ""


def _check_size(image: Image.Image, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageError(
            f"its header declares {image.width} x {image.height} = {pixels} pixels, "
            f"wanted at most {max_pixels}: shrink the picture"
        )


def _resized(image: Image.Image, image_size: tuple[int, int]) -> Image.Image:
    height, width = image_size
    if height < 1 or width < 1:
        raise ValueError(f"image size {image_size}: wanted a positive (height, width)")
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
