# SPDX-License-Identifier: Apache-2.0
"""A canvas in a person's own units: shapes, limbs and cloth patterns with Pillow."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from data_pipeline.synthetic.attributes import COLOURS
from data_pipeline.synthetic.pose import Limb, Point

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Cloth:
    """The fill of a shape: a colour, and a pattern in a second colour."""

    colour: Colour
    pattern: str = "plain"
    second: Colour = (0, 0, 0)


def cloth(name: str, *, pattern: str = "plain", second: str = "black") -> Cloth:
    """Return cloth of a named colour of `COLOURS`, with a pattern in another."""
    return Cloth(COLOURS[name], pattern, COLOURS[second])


def shade(colour: Colour, factor: float) -> Colour:
    """Darken a colour (factor below 1) or lighten it towards white (above 1)."""
    if factor <= 1.0:
        red, green, blue = (round(value * factor) for value in colour)
    else:
        red, green, blue = (
            round(value + (255 - value) * (factor - 1.0)) for value in colour
        )
    return red, green, blue


def rim(colour: Colour) -> Colour:
    """Return the colour of an outline that shows against a shape's own colour."""
    return shade(colour, 1.22) if sum(colour) < 210 else shade(colour, 0.72)


class Painter:
    """Draws on an RGB picture in a person's own coordinates (see `pose`)."""

    def __init__(
        self, image: Image.Image, *, centre: float, top: float, unit: float, mirror: int
    ):
        """Place the person: crown at `top`, `unit` pixels tall, mirror -1 or 1."""
        self.image = image
        self._draw = ImageDraw.Draw(image, "RGBA")
        self._centre = centre
        self._top = top
        self._unit = unit
        self._mirror = mirror
        self._textures: dict[Cloth, Image.Image] = {}

    def polygon(self, points: list[Point], fill: Cloth) -> None:
        """Draw a filled polygon."""
        pixels = [self._pixel(point) for point in points]
        if fill.pattern == "plain":
            self._draw.polygon(pixels, fill=fill.colour)
            return
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon(pixels, fill=255)
        self.image.paste(self._texture(fill), (0, 0), mask)

    def ellipse(self, centre: Point, rx: float, ry: float, colour: Colour) -> None:
        """Draw a filled ellipse with half axes `rx` and `ry`."""
        x, y = self._pixel(centre)
        rx, ry = rx * self._unit, ry * self._unit
        self._draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)

    def dome(self, centre: Point, rx: float, ry: float, colour: Colour) -> None:
        """Draw the upper half of an ellipse, with its flat side at `centre`."""
        x, y = self._pixel(centre)
        rx, ry = rx * self._unit, ry * self._unit
        self._draw.pieslice((x - rx, y - ry, x + rx, y + ry), 180, 360, fill=colour)

    def line(self, points: list[Point], width: float, colour: Colour) -> None:
        """Draw an open line; the width is in units."""
        pixels = [self._pixel(point) for point in points]
        self._draw.line(pixels, fill=colour, width=max(1, round(width * self._unit)))

    def shadow(self, points: list[Point], opacity: float) -> None:
        """Darken (opacity above 0) or lighten (below 0) a polygon."""
        tone = 0 if opacity > 0 else 255
        fill = (tone, tone, tone, round(255 * abs(opacity)))
        self._draw.polygon([self._pixel(point) for point in points], fill=fill)

    def limb(
        self, limb: Limb, width: float, fill: Cloth, *, until: float = 2.0
    ) -> None:
        """Draw a limb as a rounded band up to `until`: 1 is the joint, 2 the end."""
        points = _cut([limb.root, limb.middle, limb.end], until)
        widths = list(np.linspace(width, width * 0.8, 3)[: len(points)])
        edge = Cloth(rim(fill.colour))
        whole = until in (1.0, 2.0)
        self._band(points, [size + 0.009 for size in widths], edge, whole=whole)
        self._band(points, widths, fill, whole=whole)

    def _band(
        self, points: list[Point], widths: list, fill: Cloth, *, whole: bool
    ) -> None:
        """Draw a chain of trapezia with round joints; cut cloth ends flat."""
        plain = fill.pattern == "plain"
        mask = None if plain else Image.new("L", self.image.size)
        draw = self._draw if mask is None else ImageDraw.Draw(mask)
        ink = fill.colour if plain else 255
        pixels = np.array([self._pixel(point) for point in points])
        radii = np.array(widths) * self._unit / 2
        joints = list(zip(pixels.tolist(), radii.tolist(), strict=True))
        for (x, y), radius in joints if whole else joints[:-1]:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
        for start in range(len(points) - 1):
            draw.polygon(_trapezium(pixels, radii, start), fill=ink)
        if mask is not None:
            self.image.paste(self._texture(fill), (0, 0), mask)

    def _pixel(self, point: Point) -> Point:
        x, y = point
        return (
            self._centre + self._mirror * x * self._unit,
            self._top + y * self._unit,
        )

    def _texture(self, fill: Cloth) -> Image.Image:
        """Return the whole canvas in a pattern, made once for each cloth."""
        if fill not in self._textures:
            texture = Image.new("RGB", self.image.size, fill.colour)
            draw = ImageDraw.Draw(texture)
            _PATTERNS[fill.pattern](draw, self, fill.second)
            self._textures[fill] = texture
        return self._textures[fill]

    def grid(self, period: float) -> tuple[list[float], list[float]]:
        """Return pixel positions every `period` units across and down the canvas."""
        width, height = self.image.size
        step = period * self._unit
        across = np.arange(self._centre % step - step, width + step, step)
        down = np.arange(self._top % step - step, height + step, step)
        return across.tolist(), down.tolist()

    def length(self, units: float) -> float:
        """Convert units to pixels."""
        return units * self._unit

    def height_of(self, y: float) -> float:
        """Return the pixel row of a height."""
        return self._top + y * self._unit


def _cut(points: list[Point], until: float) -> list[Point]:
    """Return the chain up to a number of its parts, e.g. 0.8 of the first one."""
    whole = int(until)
    rest = until - whole
    if rest == 0.0 or whole + 1 >= len(points):
        return points[: whole + 1]
    (ax, ay), (bx, by) = points[whole], points[whole + 1]
    return [*points[: whole + 1], (ax + rest * (bx - ax), ay + rest * (by - ay))]


def _trapezium(pixels: np.ndarray, radii: np.ndarray, start: int) -> list[Point]:
    """Return the four corners of the band between two joints."""
    along = pixels[start + 1] - pixels[start]
    across = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-6)
    first, second = across * radii[start], across * radii[start + 1]
    corners = (
        pixels[start] + first,
        pixels[start + 1] + second,
        pixels[start + 1] - second,
        pixels[start] - first,
    )
    return [(float(x), float(y)) for x, y in corners]


def _stripes(draw: ImageDraw.ImageDraw, painter: Painter, second: Colour) -> None:
    width = painter.image.width
    for y in painter.grid(0.072)[1]:
        draw.rectangle((0, y, width, y + painter.length(0.034)), fill=second)


def _checks(draw: ImageDraw.ImageDraw, painter: Painter, second: Colour) -> None:
    width, height = painter.image.size
    across, down = painter.grid(0.078)
    band = painter.length(0.024)
    for y in down:
        draw.rectangle((0, y, width, y + band), fill=second)
    for x in across:
        draw.rectangle((x, 0, x + band, height), fill=second)


def _dots(draw: ImageDraw.ImageDraw, painter: Painter, second: Colour) -> None:
    across, down = painter.grid(0.066)
    radius = painter.length(0.019)
    for row, y in enumerate(down):
        for x in across:
            centre = x + (row % 2) * painter.length(0.033)
            box = (centre - radius, y - radius, centre + radius, y + radius)
            draw.ellipse(box, fill=second)


def _two_tone(draw: ImageDraw.ImageDraw, painter: Painter, second: Colour) -> None:
    width, height = painter.image.size
    draw.rectangle((0, painter.height_of(0.355), width, height), fill=second)


_PATTERNS = {
    "striped": _stripes,
    "checked": _checks,
    "dotted": _dots,
    "two-tone": _two_tone,
}
