# SPDX-License-Identifier: Apache-2.0
"""Drawings of word maps: a shaded sentence, and the image once per word."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image, ImageDraw

from fmfa_jax.figures import canvas
from fmfa_jax.figures.rankings import save
from fmfa_jax.figures.words import WordMaps, is_word, strongest
from fmfa_jax.models import ModelConfig

TALL = 224  # height of a tile
SHOWN = 8  # default number of words with a tile
LEGEND = (
    "tiles: dark patches are left out, the brightest is the word's strongest",
    "sentence: the darker, the stronger; underlined words have a tile",
)
MARGIN = 16

_HEAT = colormaps["inferno"]  # its brightness grows evenly from black to near white
# Opaque enough that the largest value on black is brighter than half of it on white.
_OPAQUE = 0.7
_SPACE = 10
_LINE = 26
_LABEL = 34
_SCALE = (56, 12)  # width, height of the legend's colours


def words_sheet(
    pixels: UInt8[np.ndarray, "H W 3"],
    views: Sequence[WordMaps],
    config: ModelConfig,
    *,
    note: str,
    chosen: Sequence[int] | None = None,
) -> Image.Image:
    """Draw each view: a title, the shaded sentence, the image, a tile for each word.

    Bright patches of a tile are those that its word relates to, black ones those that
    it does not. A greyscale print shows the same.

    Args:
        pixels: The image, drawn with the aspect ratio that the model sees.
        views: Result of `word_maps`.
        config: Config of the model, which defines the patches.
        note: Text at the top.
        chosen: Indices of words to draw tiles for; by default the eight strongest of
            each view.

    Raises:
        ValueError: The caption has no word.
    """
    if not any(is_word(word) for word in views[0].words):
        raise ValueError(f"no word to draw in the caption {list(views[0].words)}")
    rows = [strongest(v, SHOWN) if chosen is None else chosen for v in views]
    picture = _as_seen(pixels, config)
    tiles = 1 + max(map(len, rows))
    width = max(tiles * (picture.width + _SPACE), 560) + 2 * MARGIN
    lines = [_flow(view.words, width - 2 * MARGIN) for view in views]
    heights = [22 + _LINE * (1 + max(y for _, y in at)) for at in lines]
    height = 2 * MARGIN + 22 + sum(heights) + (TALL + _LABEL + 16) * len(views)
    height += 18 * len(LEGEND)
    page = Image.new("RGB", (width, height), canvas.PAPER)
    draw = ImageDraw.Draw(page)
    text = canvas.shorten(note, canvas.font(12), width - 2 * MARGIN)
    draw.text((MARGIN, MARGIN), text, canvas.FAINT, canvas.font(12))
    top = MARGIN + 22
    for view, row, places, tall in zip(views, rows, lines, heights, strict=True):
        draw.text((MARGIN, top), view.title, canvas.INK, canvas.font(12, "bold"))
        _draw_sentence(draw, top + 22, view, places, row)
        _draw_tiles(page, top + tall + 4, picture, view, config, row)
        top += tall + TALL + _LABEL + 16
    _draw_legend(page, top)
    return page


def write_words(
    path: str | Path,
    pixels: UInt8[np.ndarray, "H W 3"],
    views: Sequence[WordMaps],
    config: ModelConfig,
    *,
    note: str,
    chosen: Sequence[int] | None = None,
) -> Path:
    """Write `words_sheet` as a PNG."""
    return save(words_sheet(pixels, views, config, note=note, chosen=chosen), path)


def overlay(
    picture: Image.Image, patches: Float[np.ndarray, "p"], config: ModelConfig
) -> Image.Image:
    """Blend a map into the grey image, from black at 0 to bright at its maximum."""
    largest = patches.max()
    share = patches / largest if largest > 0 else patches
    share = _spread(share.reshape(config.grid), config, picture.size)
    heat = 255 * _HEAT(share)[..., :3]
    grey = np.asarray(picture.convert("L"), np.float32)[..., None]
    mixed = _OPAQUE * heat + (1 - _OPAQUE) * grey
    return Image.fromarray(mixed.round().astype(np.uint8))


def _as_seen(pixels: UInt8[np.ndarray, "H W 3"], config: ModelConfig) -> Image.Image:
    height, width = config.image_size
    size = max(1, round(TALL * width / height)), TALL
    return Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)


def _spread(
    cells: Float[np.ndarray, "r c"], config: ModelConfig, size: tuple[int, int]
) -> Float[np.ndarray, "h w"]:
    """Spread cells over an image of (width, height), with 0 where no patch is.

    If patches overlap, a cell is the middle of its patch, one stride wide.
    """
    margin = (config.patch - config.stride) / 2
    picked, inside = [], []
    for axis, length in enumerate((size[1], size[0])):
        model = config.image_size[axis]
        place = (np.arange(length) + 0.5) * model / length
        cell = np.floor((place - margin) / config.stride).astype(int)
        inside.append((cell >= 0) & (cell < cells.shape[axis]))
        picked.append(np.clip(cell, 0, cells.shape[axis] - 1))
    return cells[np.ix_(*picked)] * np.outer(*inside)


def _flow(words: Sequence[str], width: int) -> list[tuple[int, int]]:
    """Break words into lines; return the x in pixels and the line of each.

    Punctuation follows its word closely.
    """
    face, places, x, line = canvas.font(15), [], 0, 0
    for word in words:
        wide = round(face.getlength(word)) + 6
        if places and not is_word(word[0]):
            x -= 4
        if x and x + wide > width:
            x, line = 0, line + 1
        places.append((x, line))
        x += wide + 4
    return places


def _draw_sentence(
    draw: ImageDraw.ImageDraw,
    top: int,
    view: WordMaps,
    places: Sequence[tuple[int, int]],
    chosen: Sequence[int],
) -> None:
    """Draw the words on grey, darker if stronger; chosen ones are underlined."""
    face = canvas.font(15)
    for number, (word, (x, line)) in enumerate(zip(view.words, places, strict=True)):
        corner = MARGIN + x, top + _LINE * line
        right = corner[0] + round(face.getlength(word)) + 6
        grey = 255
        if is_word(word):
            grey = round(_ground(_relative(view, number)))
            box = (*corner, right, corner[1] + 20)
            draw.rectangle(box, fill=(grey,) * 3)
        ink = canvas.INK if grey > 127 else canvas.PAPER
        draw.text((corner[0] + 3, corner[1] + 1), word, ink, face)
        if number in chosen:
            under = (corner[0], corner[1] + 22, right, corner[1] + 23)
            draw.rectangle(under, fill=canvas.INK)


def _ground(
    share: float | Float[np.ndarray, "n"],
) -> float | Float[np.ndarray, "n"]:
    """Return the grey behind a word of this relative strength; 0 is white."""
    return 255 * (1 - 0.85 * share)


def _relative(view: WordMaps, number: int) -> float:
    """Return a word's strength relative to the weakest (0) and the strongest (1)."""
    values = [
        float(s)
        for text, s in zip(view.words, view.strength, strict=True)
        if is_word(text)
    ]
    span = max(values) - min(values)
    return (float(view.strength[number]) - min(values)) / span if span > 0 else 0.0


def _draw_legend(page: Image.Image, top: int) -> None:
    """Explain dark and bright, with both scales."""
    draw = ImageDraw.Draw(page)
    width, height = _SCALE
    heat = 255 * _HEAT(np.linspace(0, 1, width))[None, :, :3]
    mixed = _OPAQUE * heat + (1 - _OPAQUE) * 128
    grey = np.tile(_ground(np.linspace(0, 1, width))[None, :, None], (1, 1, 3))
    for line, (text, colours) in enumerate(zip(LEGEND, (mixed, grey), strict=True)):
        scale = Image.fromarray(np.repeat(colours.round().astype(np.uint8), height, 0))
        corner = MARGIN, top + 18 * line
        page.paste(scale, corner)
        box = (*corner, corner[0] + width - 1, corner[1] + height - 1)
        draw.rectangle(box, outline=canvas.FAINT)
        place = corner[0] + width + 8, corner[1] + height // 2
        draw.text(place, text, canvas.FAINT, canvas.font(11), anchor="lm")


def _draw_tiles(
    page: Image.Image,
    top: int,
    picture: Image.Image,
    view: WordMaps,
    config: ModelConfig,
    chosen: Sequence[int],
) -> None:
    draw = ImageDraw.Draw(page)
    page.paste(picture, (MARGIN, top))
    draw.text((MARGIN, top + TALL + 3), "picture", canvas.FAINT, canvas.font(12))
    for column, number in enumerate(chosen, 1):
        x = MARGIN + column * (picture.width + _SPACE)
        page.paste(overlay(picture, view.patches[number], config), (x, top))
        word = canvas.shorten(
            view.words[number], canvas.font(13, "bold"), picture.width
        )
        draw.text((x, top + TALL + 3), word, canvas.INK, canvas.font(13, "bold"))
        strength = f"{view.strength[number]:.2f}"
        draw.text((x, top + TALL + 19), strength, canvas.FAINT, canvas.font(11))
