# SPDX-License-Identifier: Apache-2.0
"""Where a person is photographed: background, light, blur and occluders.

`studio` is plain and bright. `street` is cluttered, darker, unevenly lit, cooler in
colour and noisier, and something often hides part of the person.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFilter

STYLES = ("studio", "street")
VIEWS = ("front", "back", "side")
_VIEW_SHARES = np.cumsum((0.4, 0.32, 0.28))
OCCLUDERS = ("nothing", "low", "cut", "edge", "pole")


@dataclass(frozen=True)
class Manner:
    """How a style takes photographs: ranges to draw from, and shares of occluders."""

    scale: tuple[float, float]
    gain: tuple[float, float]
    slope: float
    tint: tuple[float, float, float]
    colourfulness: float
    noise: tuple[float, float]
    blur: tuple[float, float]
    occluders: tuple[float, ...]


MANNERS = {
    "studio": Manner(
        scale=(0.86, 0.94),
        gain=(0.92, 1.06),
        slope=0.08,
        tint=(1.0, 1.0, 1.0),
        colourfulness=1.0,
        noise=(1.0, 3.0),
        blur=(0.0, 0.4),
        occluders=(0.90, 0.04, 0.04, 0.02, 0.0),
    ),
    "street": Manner(
        scale=(0.76, 0.92),
        gain=(0.58, 0.96),
        slope=0.30,
        tint=(0.90, 0.99, 1.12),
        colourfulness=0.84,
        noise=(3.0, 8.0),
        blur=(0.2, 0.9),
        occluders=(0.50, 0.16, 0.10, 0.14, 0.10),
    ),
}


@dataclass(frozen=True)
class Shot:
    """The circumstances of one picture; lengths are fractions of its height.

    `mirror` is 1 or -1, `stride` runs from -1 to 1 through a walking step, `scale` is
    the person's height, `top` the place of the crown, and `centre` the middle of the
    body as a fraction of the picture's width.
    """

    style: str
    view: str
    mirror: int
    stride: float
    scale: float
    top: float
    centre: float
    occluder: str


def take_shot(rng: np.random.Generator, *, style: str, umbrella: bool) -> Shot:
    """Draw the circumstances of one picture; an open umbrella needs headroom."""
    manner = MANNERS[style]
    view = VIEWS[int(np.searchsorted(_VIEW_SHARES, rng.random()))]
    shares = np.cumsum(manner.occluders)
    occluder = OCCLUDERS[int(np.searchsorted(shares, rng.random() * 0.9999))]
    scale = float(rng.uniform(*manner.scale)) * (0.88 if umbrella else 1.0)
    room = 1.0 - scale - 0.02
    top = 1.0 - 0.93 * scale if occluder == "cut" else 0.01 + room * rng.uniform(0.3, 1)
    if umbrella:
        top = max(top, 0.15 * scale)
    return Shot(
        style=style,
        view=view,
        mirror=1 if rng.random() < 0.5 else -1,
        stride=float(rng.uniform(-1.0, 1.0)),
        scale=scale,
        top=float(top),
        centre=float(rng.uniform(0.45, 0.55)),
        occluder=occluder,
    )


def draw_background(
    rng: np.random.Generator, *, style: str, size: tuple[int, int]
) -> Image.Image:
    """Return a background of (width, height) `size`, before light and noise."""
    if style == "studio":
        return _studio(rng, size)
    return _street(rng, size)


def draw_occluder(rng: np.random.Generator, image: Image.Image, shot: Shot) -> None:
    """Draw whatever is in front of the person onto the picture itself."""
    width, height = image.size
    draw = ImageDraw.Draw(image)
    colour = _muted(rng)
    if shot.occluder == "low":
        top = (shot.top + shot.scale * float(rng.uniform(0.86, 0.92))) * height
        _draw_low(rng, draw, colour, box=(width, height, top))
    elif shot.occluder == "edge":
        _draw_passer_by(rng, draw, colour, size=(width, height))
    elif shot.occluder == "pole":
        left = width * float(rng.uniform(0.2, 0.72))
        draw.rectangle((left, 0, left + width * 0.055, height), fill=colour)


def expose(rng: np.random.Generator, image: Image.Image, style: str) -> Image.Image:
    """Apply a style's blur, uneven light, tint and noise to a picture."""
    manner = MANNERS[style]
    blur = float(rng.uniform(*manner.blur))
    if blur > 0.25:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(image, np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (pixels - grey) * manner.colourfulness
    pixels = pixels * _light(rng, manner, width=image.width)
    noise = rng.standard_normal(pixels.shape[:2], np.float32)[:, :, None]
    pixels = pixels + noise * np.float32(rng.uniform(*manner.noise))
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def _light(
    rng: np.random.Generator, manner: Manner, *, width: int
) -> Float[np.ndarray, "1 w 3"]:
    """Return factors across the picture: brightness with a slope, times a tint."""
    gain = rng.uniform(*manner.gain)
    slope = rng.uniform(-manner.slope, manner.slope)
    across = gain * (1.0 + slope * np.linspace(-1.0, 1.0, width))
    tint = np.array(manner.tint) * rng.uniform(0.97, 1.03, 3)
    return (across[None, :, None] * tint).astype(np.float32)


def _studio(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return a pale wall and a pale floor."""
    width, height = size
    base = rng.uniform(196, 232) + rng.uniform(-8, 8, 3)
    wall = np.linspace(1.03, 0.95, height)[:, None, None] * base
    floor = int(height * rng.uniform(0.80, 0.90))
    wall[floor:] *= rng.uniform(0.84, 0.93)
    pixels = np.broadcast_to(wall, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _street(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return house fronts with windows, a sign, a pavement, cars and distant people."""
    width, height = size
    image = Image.new("RGB", size, _muted(rng))
    draw = ImageDraw.Draw(image)
    ground = height * float(rng.uniform(0.55, 0.78))
    seam = width * float(rng.uniform(0.2, 0.8))
    draw.rectangle((seam, 0, width, ground), fill=_muted(rng))
    _draw_windows(rng, draw, width=width, ground=ground)
    draw.rectangle((0, ground, width, height), fill=_muted(rng, low=96, high=168))
    for _ in range(int(rng.integers(1, 4))):
        _draw_clutter(rng, draw, width=width, ground=ground)
    for y in np.linspace(ground, height, 5)[1:4]:
        draw.line((0, y, width, y + 4), fill=(92, 94, 98), width=1)
    return image.filter(ImageFilter.BoxBlur(1))


def _draw_windows(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    *,
    width: int,
    ground: float,
) -> None:
    """Draw a loose grid of windows, a few of them lit, and one bright sign."""
    step = width * float(rng.uniform(0.22, 0.42))
    glass = _muted(rng, low=40, high=110)
    for x in np.arange(-step * rng.random(), width, step):
        for y in np.arange(step * rng.random(), ground - step, step * 1.3):
            lit = rng.random() < 0.15
            fill = (222, 206, 150) if lit else glass
            draw.rectangle((x, y, x + step * 0.6, y + step * 0.85), fill=fill)
    x, y = rng.uniform(0, width), rng.uniform(0, ground * 0.7)
    red, green, blue = (int(value) for value in rng.integers(30, 235, 3))
    sign = (x, y, x + width * 0.25, y + width * 0.16)
    draw.rectangle(sign, fill=(red, green, blue))


def _draw_clutter(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    *,
    width: int,
    ground: float,
) -> None:
    """Draw a parked car or a small distant person."""
    x = float(rng.uniform(-0.1, 1.0)) * width
    colour = _muted(rng, low=40, high=200)
    if rng.random() < 0.5:
        long, tall = width * 0.5, width * 0.17
        draw.rounded_rectangle((x, ground - tall, x + long, ground), 4, fill=colour)
        roof = (x + long * 0.2, ground - tall * 1.7, x + long * 0.8, ground - tall)
        draw.rounded_rectangle(roof, 4, fill=(52, 58, 66))
    else:
        tall = width * float(rng.uniform(0.5, 0.8))
        wide = tall * 0.13
        top = ground + 4 - tall
        draw.rectangle((x - wide, top + wide, x + wide, top + tall * 0.55), fill=colour)
        legs = (x - wide * 0.8, top + tall * 0.55, x + wide * 0.8, top + tall)
        draw.rectangle(legs, fill=(48, 50, 58))
        draw.ellipse(
            (x - wide * 0.6, top, x + wide * 0.6, top + wide), fill=(170, 130, 110)
        )


def _draw_low(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    colour: tuple[int, int, int],
    *,
    box: tuple[int, int, float],
) -> None:
    """Draw a hedge or a low wall across the picture, from `top` down, over the feet."""
    width, height, top = box
    draw.rectangle((0, top, width, height), fill=colour)
    if rng.random() < 0.5:
        leaf = width * 0.08
        for x in np.arange(0, width, leaf):
            draw.ellipse((x - leaf, top - leaf / 2, x + leaf, top + leaf), fill=colour)
    else:
        red, green, blue = (round(value * 0.7) for value in colour)
        draw.rectangle((0, top, width, top + 5), fill=(red, green, blue))


def _draw_passer_by(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    colour: tuple[int, int, int],
    *,
    size: tuple[int, int],
) -> None:
    """Draw a passer-by's shoulder and arm at one edge, close to the camera."""
    width, height = size
    reach = width * float(rng.uniform(0.14, 0.24))
    top = height * float(rng.uniform(0.2, 0.4))
    left, right = -reach, reach
    if rng.random() < 0.5:
        left, right = width - reach, width + reach
    shoulder = (left, top, right, height * 1.2)
    draw.rounded_rectangle(shoulder, round(reach * 0.7), fill=colour)


def _muted(
    rng: np.random.Generator, *, low: int = 70, high: int = 190
) -> tuple[int, int, int]:
    """Return a greyish colour, as of brick, concrete, foliage or car paint."""
    level = rng.uniform(low, high)
    red, green, blue = np.clip(level + rng.uniform(-30, 30, 3), 0, 255).astype(int)
    return int(red), int(green), int(blue)
