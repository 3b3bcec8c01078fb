# SPDX-License-Identifier: Apache-2.0
"""Garments on a posed body, and the colours of both."""

from data_pipeline.synthetic.attributes import COLOURS, NONE, Identity
from data_pipeline.synthetic.painter import Cloth, Painter, cloth, rim, shade
from data_pipeline.synthetic.pose import (
    HIP_Y,
    SHOULDER_Y,
    WAIST_Y,
    Limb,
    Point,
    Skeleton,
)

SKIN = {"light": (244, 206, 178), "tan": (204, 148, 104), "dark": (106, 68, 46)}
HAIR = {
    "black": (22, 20, 20),
    "brown": (96, 58, 30),
    "blond": (236, 200, 104),
    "red": (190, 78, 26),
    "grey": (176, 176, 178),
    NONE: (0, 0, 0),
}
HEMS = {"jacket": 0.545, "vest": 0.54, "coat": 0.72}


def skin(person: Identity) -> Cloth:
    """Return the person's skin as a fill."""
    return Cloth(SKIN[person.skin])


def upper_cloth(person: Identity) -> Cloth:
    """Return the upper garment's cloth; a logo is drawn later, on plain cloth."""
    pattern = "plain" if person.pattern == "logo" else person.pattern
    second = "black" if person.pattern_colour == NONE else person.pattern_colour
    return cloth(person.upper_colour, pattern=pattern, second=second)


def sleeve(person: Identity) -> tuple[Cloth, float] | None:
    """Return what covers the arms and how far down; None for bare arms."""
    if person.outer in ("jacket", "coat"):
        return cloth(person.outer_colour), 1.9
    if person.sleeves == NONE:
        return None
    return upper_cloth(person), 1.9 if person.sleeves == "long" else 0.8


def torso_outline(body: Skeleton, *, hem: float, flare: float = 1.0) -> list[Point]:
    """Return the symmetrical outline from the shoulders to a hem below the waist."""
    side = [
        (body.shoulder * 0.42, 0.160),
        (body.shoulder * 0.92, SHOULDER_Y),
        (body.chest, 0.29),
        (body.waist, WAIST_Y - 0.03),
        (body.hip * 1.04 * flare, hem),
    ]
    return [*side, *[(-x, y) for x, y in reversed(side)]]


def draw_leg(painter: Painter, person: Identity, body: Skeleton, leg: Limb) -> None:
    """Draw a leg with its trouser leg and its shoe."""
    painter.limb(leg, body.leg_width * 0.82, skin(person))
    if person.lower in ("trousers", "jeans", "leggings"):
        fill = cloth(person.lower_colour)
        width = body.leg_width * (0.9 if person.lower == "leggings" else 1.2)
        until = 1.86 if person.lower == "leggings" else 1.94
        painter.limb(leg, width, fill, until=until)
        if person.lower == "jeans":
            _draw_denim(painter, leg, width)
    elif person.lower == "shorts":
        painter.limb(leg, body.leg_width * 1.3, cloth(person.lower_colour), until=0.86)
    _draw_shoe(painter, person, body, leg)
    if person.shoes == "boots":
        shaft = Limb(_between(leg.middle, leg.end, 0.42), leg.end, leg.end)
        painter.limb(shaft, body.leg_width * 1.05, cloth(person.shoes_colour))


def draw_lower(painter: Painter, person: Identity, body: Skeleton) -> None:
    """Draw the seat of trousers, or a skirt, over both legs."""
    if person.lower == NONE:
        return
    fill = cloth(person.lower_colour)
    seat = [(body.waist, WAIST_Y - 0.02), (body.hip, HIP_Y), (body.hip, HIP_Y + 0.05)]
    painter.polygon([*seat, *[(-x, y) for x, y in reversed(seat)]], fill)
    if person.lower in ("skirt", "long skirt"):
        hem = 0.70 if person.lower == "skirt" else 0.91
        draw_skirt(painter, body, fill, hem=hem)
    elif body.view != "side":
        painter.shadow([(-0.006, 0.53), (0.006, 0.53), (0.003, 0.66)], 0.25)


def draw_skirt(painter: Painter, body: Skeleton, fill: Cloth, *, hem: float) -> None:
    """Draw a flared skirt from the waist to a hem, with two folds."""
    flare = body.hip * (1.32 if hem < 0.8 else 1.42)
    points = [(body.waist, WAIST_Y), (body.hip * 1.08, HIP_Y), (flare, hem)]
    painter.polygon([*points, *[(-x, y) for x, y in reversed(points)]], fill)
    for x in (-0.35, 0.3):
        fold = [(x * body.waist, HIP_Y), (x * flare, hem), ((x + 0.14) * flare, hem)]
        painter.shadow(fold, 0.16)


def draw_upper(painter: Painter, person: Identity, body: Skeleton) -> None:
    """Draw the upper garment on the torso, with the details that show its kind."""
    if person.upper == NONE:
        return
    fill = upper_cloth(person)
    if person.upper == "dress":
        draw_skirt(painter, body, fill, hem=0.72)
    hem = HIP_Y if person.upper in ("dress", "tank top") else 0.53
    if person.upper == "tank top":
        _draw_tank_top(painter, person, body, fill)
    else:
        painter.polygon(torso_outline(body, hem=hem), fill)
    if person.upper == "dress":
        waist = body.waist * 1.02
        painter.line([(-waist, 0.44), (waist, 0.44)], 0.014, rim(fill.colour))
    _draw_upper_details(painter, person, body)


def draw_outer(painter: Painter, person: Identity, body: Skeleton) -> None:
    """Draw the outer garment over the upper one; if open, it leaves a gap in front."""
    if person.outer == NONE:
        return
    fill = cloth(person.outer_colour)
    hem = HEMS[person.outer]
    flare = 1.16 if person.outer == "coat" else 1.05
    outline = torso_outline(body, hem=hem, flare=flare)
    half = outline[: len(outline) // 2]
    if body.view == "front" and person.outer_fit == "open":
        for side in (-1.0, 1.0):
            inner = [(0.062, hem), (0.050, WAIST_Y), (0.046, 0.28), (0.028, 0.16)]
            panel = [(side * x, y) for x, y in [*half, *inner]]
            painter.polygon(panel, fill)
            edge = [(side * x, y) for x, y in inner]
            painter.line(edge, 0.009, rim(fill.colour))
    else:
        painter.polygon(outline, fill)
        if body.view == "front":
            painter.line([(0.0, 0.17), (0.0, hem)], 0.011, rim(fill.colour))
    _draw_outer_details(painter, person, body, hem)


def _draw_outer_details(
    painter: Painter, person: Identity, body: Skeleton, hem: float
) -> None:
    """Draw a vest's quilting, a coat's belt line or a jacket's ribbed hem."""
    edge = rim(COLOURS[person.outer_colour])
    if person.outer == "vest":
        gap = 0.05 if body.view == "front" else 0.0
        for y in (0.25, 0.32, 0.39, 0.46):
            for side in (-1.0, 1.0):
                ends = [(side * gap, y), (side * body.waist, y)]
                painter.line(ends, 0.009, edge)
    if person.outer == "coat" and body.view != "front":
        painter.line([(-body.waist, 0.43), (body.waist, 0.43)], 0.016, edge)
    if person.outer == "jacket" and body.view != "front":
        painter.line([(-body.hip, hem), (body.hip, hem)], 0.014, edge)


def _draw_tank_top(
    painter: Painter, person: Identity, body: Skeleton, fill: Cloth
) -> None:
    """Draw bare shoulders and two straps."""
    painter.polygon(torso_outline(body, hem=0.3), skin(person))
    side = [
        (body.shoulder * 0.42, 0.165),
        (body.shoulder * 0.62, 0.175),
        (body.shoulder * 0.70, 0.235),
        (body.chest, 0.27),
        (body.waist, WAIST_Y - 0.03),
        (body.hip * 1.03, 0.53),
    ]
    neck = [(-body.shoulder * 0.3, 0.165), (0.0, 0.225), (body.shoulder * 0.3, 0.165)]
    left = [(-x, y) for x, y in reversed(side)]
    painter.polygon([*side, *left, *neck], fill)


def _draw_upper_details(painter: Painter, person: Identity, body: Skeleton) -> None:
    """Draw collar and buttons, ribbing, hood and pocket, or a print on the chest."""
    colour = COLOURS[person.upper_colour]
    edge = rim(colour)
    if person.upper == "sweater":
        painter.line([(-body.hip, 0.525), (body.hip, 0.525)], 0.022, edge)
    if person.upper == "hoodie" and body.view == "back":
        painter.ellipse((0.0, 0.195), body.shoulder * 0.62, 0.052, edge)
        painter.ellipse((0.0, 0.187), body.shoulder * 0.54, 0.042, shade(colour, 0.9))
    if body.view != "front":
        return
    if person.upper == "hoodie":
        pocket = [(-0.045, 0.40), (0.045, 0.40), (0.062, 0.485), (-0.062, 0.485)]
        painter.polygon(pocket, Cloth(edge))
        for x in (-0.022, 0.022):
            painter.line([(x, 0.18), (x * 1.2, 0.28)], 0.009, (235, 235, 230))
    if person.upper == "shirt":
        painter.line([(0.0, 0.18), (0.0, 0.53)], 0.010, edge)
        for side in (-1.0, 1.0):
            tip = [(0.0, 0.162), (side * 0.05, 0.158), (side * 0.042, 0.215)]
            painter.polygon(tip, Cloth(shade(colour, 1.35)))
    if person.pattern == "logo":
        print_colour = COLOURS[person.pattern_colour]
        painter.ellipse((0.0, 0.305), 0.058, 0.058, print_colour)
        painter.ellipse((0.0, 0.305), 0.024, 0.024, colour)


def _draw_denim(painter: Painter, leg: Limb, width: float) -> None:
    """Draw washed-out thighs and light turned-up hems."""
    x, y = _between(leg.root, leg.middle, 0.55)
    for fade in (0.28, 0.16):
        half = width * fade
        worn = [(x - half * 0.5, y - 0.10), (x + half * 0.5, y - 0.10), (x + half, y)]
        worn += [(x + half * 0.5, y + 0.10), (x - half * 0.5, y + 0.10), (x - half, y)]
        painter.shadow(worn, -0.13)
    x, y = _between(leg.middle, leg.end, 0.92)
    cuff = width * 0.46
    painter.line([(x - cuff, y), (x + cuff, y)], 0.024, (178, 198, 222))


def _draw_shoe(painter: Painter, person: Identity, body: Skeleton, leg: Limb) -> None:
    """Draw a shoe under the ankle, pointing forwards in the side view."""
    x, y = leg.end
    colour = COLOURS[person.shoes_colour]
    half = 0.044
    heel, toe = x - half, x + (0.098 if body.view == "side" else half)
    top, sole = y - 0.012, y + 0.045
    upper = [(heel, top), (x + 0.03, top), (toe, y + 0.016), (toe, sole)]
    fill = skin(person) if person.shoes == "sandals" else Cloth(colour)
    painter.polygon([*upper, (heel, sole)], fill)
    if person.shoes == "sneakers":
        white = (250, 250, 250) if sum(colour) < 650 else (170, 170, 175)
        painter.line([(heel, sole), (toe, sole)], 0.013, white)
    elif person.shoes == "sandals":
        for height in (0.002, 0.022):
            painter.line([(heel, y + height), (toe, y + height)], 0.011, colour)
        painter.line([(heel, sole), (toe, sole)], 0.011, colour)
    else:
        painter.line([(heel, sole), (toe, sole)], 0.008, rim(colour))


def _between(start: Point, end: Point, share: float) -> Point:
    """Return the point at a fraction of the way from `start` to `end`."""
    return (
        start[0] + share * (end[0] - start[0]),
        start[1] + share * (end[1] - start[1]),
    )
