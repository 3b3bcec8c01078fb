# SPDX-License-Identifier: Apache-2.0
"""Text, frames and thumbnails on a Pillow image, readable in black and white."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from fmfa_jax.plots import INK, PAPER

FAINT = "#5a5a5a"
RIGHT, WRONG, NEUTRAL = "#007a3d", "#c8102e", "#1f4e9e"
SIGNS = {RIGHT: "\u2713", WRONG: "\u2717", NEUTRAL: ""}
"""Right and wrong never differ only by colour, but also by a tick and a cross."""

_FRAME = 4


@lru_cache
def font(size: int, weight: str = "regular") -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans as bundled with matplotlib; weight is "regular" or "bold"."""
    name = {"regular": "DejaVuSans.ttf", "bold": "DejaVuSans-Bold.ttf"}[weight]
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size)


def wrap(text: str, face: ImageFont.FreeTypeFont, width: int, lines: int) -> str:
    """Wrap text to at most `lines` lines of `width` pixels, cut with an ellipsis."""
    done, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and face.getlength(longer) > width:
            done.append(line)
            longer = word
        line = longer
    done.append(line)
    if len(done) > lines:
        done = [*done[: lines - 1], f"{done[lines - 1]} …"]
    return "\n".join(shorten(each, face, width) for each in done)


def shorten(text: str, face: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut out the middle of a text wider than `width` pixels."""
    if face.getlength(text) <= width:
        return text
    keep = len(text) - 1
    while keep > 1 and face.getlength(_without_middle(text, keep)) > width:
        keep -= 1
    return _without_middle(text, keep)


def thumbnail(pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> Image.Image:
    """Fit an image into (width, height) on light grey, keeping its aspect ratio."""
    image = Image.fromarray(pixels)
    image.thumbnail(size, Image.Resampling.LANCZOS)
    tile = Image.new("RGB", size, "#e8e8e8")
    place = (size[0] - image.width) // 2, (size[1] - image.height) // 2
    tile.paste(image, place)
    return tile


def place_tile(
    sheet: Image.Image,
    corner: tuple[int, int],
    tile: Image.Image,
    *,
    colour: str,
    labels: Sequence[str],
) -> None:
    """Paste a thumbnail with frame and sign, and draw its labels below.

    The frame of a right image is solid, that of a wrong one broken.
    """
    draw = ImageDraw.Draw(sheet)
    x, y = corner
    box = (x, y, x + tile.width + 2 * _FRAME - 1, y + tile.height + 2 * _FRAME - 1)
    draw.rectangle(box, fill=colour)
    if colour == WRONG:
        _break_frame(draw, box)
    sheet.paste(tile, (x + _FRAME, y + _FRAME))
    if SIGNS[colour]:
        badge = (x + _FRAME, y + _FRAME, x + _FRAME + 20, y + _FRAME + 20)
        draw.rectangle(badge, fill=colour)
        middle = (x + _FRAME + 10, y + _FRAME + 10)
        draw.text(middle, SIGNS[colour], PAPER, font(16, "bold"), anchor="mm")
    face = font(11)
    for number, label in enumerate(labels):
        text = shorten(label, face, tile.width + 2 * _FRAME)
        ink = FAINT if number else INK
        draw.text((x, box[3] + 4 + 14 * number), text, ink, face)


def _without_middle(text: str, keep: int) -> str:
    head = keep // 3
    return f"{text[:head]}…{text[len(text) - (keep - head) :]}"


def _break_frame(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int]) -> None:
    """Erase gaps in the four sides of a frame, but not in its corners."""
    x0, y0, x1, y1 = box
    for x in range(x0 + 8, x1 - 8, 16):
        for y in (y0, y1 - _FRAME + 1):
            draw.rectangle((x, y, x + 7, y + _FRAME - 1), fill=PAPER)
    for y in range(y0 + 8, y1 - 8, 16):
        for x in (x0, x1 - _FRAME + 1):
            draw.rectangle((x, y, x + _FRAME - 1, y + 7), fill=PAPER)
