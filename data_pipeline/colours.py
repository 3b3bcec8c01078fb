# SPDX-License-Identifier: Apache-2.0
"""Pillow pictures of every mode as 8-bit RGB in sRGB, without transparency."""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")
# The modes that a profile can describe, and the ones it turns them into.
_PROFILED = {"RGB": "RGB", "RGBA": "RGBA", "L": "RGB", "CMYK": "RGB"}
_SRGB = ImageCms.createProfile("sRGB")
DEPTHS = (8, 10, 12, 14, 16)
"""Depths of grey levels that a 16-bit file may have."""

LARGEST_PROFILE = 4 << 20
"""Larger profiles are ignored, because the last few are kept in memory."""

_NO_CHANGE = 2
"""A profile that changes no colour by more levels is sRGB, rounded: pixels stay."""


class ColourError(ValueError):
    """A picture whose colours have no 8-bit form."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a loaded picture as RGB; an ordinary one comes back as it is.

    - A colour profile is applied. One that cannot be read, or is for colours of another
      kind, is ignored; see `profile_of`.
    - Grey levels of 16 bits are scaled by the depth in use, one of `DEPTHS`: cameras
      store 10 or 12 bits in 16, which would otherwise come out black.
    - What is transparent is laid on white.

    Raises:
        ColourError: If the grey levels are floating-point numbers.
    """
    profile = image.info.get("icc_profile")
    if image.mode == "RGB" and not profile and "transparency" not in image.info:
        return image
    if image.mode in _DEEP_GREY:
        image = _eight_bits(image)
    elif image.mode == "F":
        raise ColourError("has floating-point grey levels: wanted 8 or 16 bits")
    image = _plain(image)
    if profile and (transform := _transform(profile, image.mode)):
        image = _applied(transform, image)
    return _on_white(image) if image.mode in ("RGBA", "LA") else image.convert("RGB")


def profile_of(image: Image.Image) -> str:
    """Return what becomes of the picture's colour profile.

    Returns:
        "none", "sRGB" (nothing to do), "converted" or "ignored" (it is broken).
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return "none"
    try:
        found = _built(profile, _plain(image.crop((0, 0, 1, 1))).mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return "ignored"
    return "converted" if found else "sRGB"


def _eight_bits(image: Image.Image) -> Image.Image:
    deep = np.clip(np.asarray(image), 0, 65535)
    brightest = int(deep.max(initial=0))
    bits = next(depth for depth in DEPTHS if brightest < 1 << depth)
    return Image.fromarray((deep >> bits - 8).astype(np.uint8))


def _plain(image: Image.Image) -> Image.Image:
    """Return a palette or a rare mode as RGB or grey, with alpha if it has any."""
    if image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA")
        return image.convert("LA" if grey else "RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in _PROFILED else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, "white")
    white.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return white


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    if image.mode != "LA":
        return transform.apply(image)
    grey, alpha = image.split()
    coloured = transform.apply(grey)
    coloured.putalpha(alpha)
    return coloured


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the way to sRGB; None if there is nothing to do or to be done."""
    try:
        return _built(profile, mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@functools.lru_cache(maxsize=32)
def _built(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    if len(profile) > LARGEST_PROFILE:
        raise ValueError(f"a profile of {len(profile)} bytes")
    mode = "L" if mode == "LA" else mode
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)), _SRGB, mode, _PROFILED[mode]
    )
    probe = _probe(mode)
    if mode == "CMYK":
        return transform
    before, after = (
        np.asarray(each.convert("RGB"), np.int16)
        for each in (probe, transform.apply(probe))
    )
    return transform if np.abs(before - after).max() > _NO_CHANGE else None


def _probe(mode: str) -> Image.Image:
    """Return a picture that has colours of all kinds."""
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(16, 256, 3)
    return Image.fromarray(grid).convert(mode)
