# SPDX-License-Identifier: Apache-2.0
"""Bags, hats, glasses, scarves and the things that people carry."""

from data_pipeline.synthetic.attributes import COLOURS, NONE, Identity
from data_pipeline.synthetic.painter import Cloth, Painter, cloth, rim, shade
from data_pipeline.synthetic.pose import HEAD_Y, Limb, Point, Skeleton


def draw_bag_behind(painter: Painter, person: Identity, body: Skeleton) -> None:
    """Draw the part of a bag that is behind the body in this view."""
    if person.bag == "backpack" and body.view == "side":
        fill = cloth(person.bag_colour)
        x = -body.chest
        bump = [(x + 0.03, 0.19), (x - 0.09, 0.21), (x - 0.11, 0.42), (x + 0.03, 0.45)]
        painter.polygon(bump, fill)
        painter.line([(x - 0.10, 0.34), (x, 0.34)], 0.010, rim(fill.colour))


def draw_bag(painter: Painter, person: Identity, body: Skeleton) -> None:
    """Draw the part of a bag that is over the clothes in this view."""
    if person.bag == NONE:
        return
    _BAGS[person.bag](painter, person, body)


def draw_scarf(painter: Painter, person: Identity, body: Skeleton) -> None:
    """Draw a thick band around the neck with one end hanging down."""
    if person.scarf_colour == NONE:
        return
    colour = COLOURS[person.scarf_colour]
    x = 0.05 if body.view == "side" else 0.03
    y = 0.33 if body.view != "back" else 0.28
    painter.line([(x, 0.165), (x + 0.008, y)], 0.046, rim(colour))
    painter.line([(x, 0.165), (x + 0.008, y)], 0.038, colour)
    painter.ellipse((0.0, 0.163), 0.075, 0.030, rim(colour))
    painter.ellipse((0.0, 0.161), 0.070, 0.025, colour)


def draw_hat(painter: Painter, person: Identity, body: Skeleton) -> None:
    """Draw a cap with a peak, a beanie with a bobble, or a hat with a wide brim."""
    if person.hat == NONE:
        return
    colour = COLOURS[person.hat_colour]
    edge = rim(colour)
    painter.dome((0.0, 0.060), 0.066, 0.072, colour)
    if person.hat == "cap":
        ends = {"side": (0.0, 0.125), "front": (-0.062, 0.062), "back": (-0.05, 0.05)}
        left, right = ends[body.view]
        painter.line([(left, 0.060), (right, 0.064)], 0.020, edge)
    elif person.hat == "beanie":
        painter.line([(-0.064, 0.056), (0.064, 0.056)], 0.030, edge)
        painter.ellipse((0.0, -0.016), 0.026, 0.024, edge)
    else:
        painter.ellipse((0.0, 0.058), 0.125, 0.020, edge)
        painter.ellipse((0.0, 0.053), 0.120, 0.017, colour)
        painter.line([(-0.062, 0.040), (0.062, 0.040)], 0.014, edge)


def draw_eyewear(painter: Painter, person: Identity, body: Skeleton) -> None:
    """Draw glasses as two rings, sunglasses as two dark discs; nothing from behind."""
    if person.eyewear == NONE or body.view == "back":
        return
    frame = (16, 16, 18)
    eyes = (0.036,) if body.view == "side" else (-0.026, 0.026)
    for x in eyes:
        painter.ellipse((x, HEAD_Y - 0.002), 0.025, 0.020, frame)
        if person.eyewear == "glasses":
            painter.ellipse((x, HEAD_Y - 0.002), 0.016, 0.012, (214, 228, 236))
    back = -0.02 if body.view == "side" else -0.055
    painter.line([(back, HEAD_Y - 0.006), (0.05, HEAD_Y - 0.006)], 0.008, frame)


def draw_carried(painter: Painter, person: Identity, arm: Limb) -> None:
    """Draw what the first hand holds."""
    if person.carried == NONE:
        return
    x, y = arm.end
    if person.carried == "phone":
        box = _box(x, y - 0.025, 0.022, 0.036)
        painter.polygon(box, Cloth((18, 18, 22)))
        painter.polygon(_box(x, y - 0.025, 0.014, 0.026), Cloth((150, 200, 230)))
    elif person.carried == "cup":
        cup = [(x - 0.03, y - 0.05), (x + 0.03, y - 0.05), (x + 0.02, y + 0.03)]
        painter.polygon([*cup, (x - 0.02, y + 0.03)], Cloth((250, 250, 248)))
        painter.line([(x - 0.03, y - 0.05), (x + 0.03, y - 0.05)], 0.016, (96, 60, 36))
    elif person.carried == "book":
        fill = cloth(person.carried_colour)
        painter.polygon(_box(x, y, 0.062, 0.048), Cloth(rim(fill.colour)))
        painter.polygon(_box(x, y, 0.054, 0.041), fill)
        painter.line([(x - 0.03, y - 0.012), (x + 0.03, y - 0.012)], 0.010, (245,) * 3)
    elif person.carried == "shopping bag":
        _hand_bag(painter, (x, y), cloth(person.carried_colour), 0.062, 0.125)


def draw_umbrella(painter: Painter, person: Identity, arm: Limb) -> None:
    """Draw an open umbrella over the head; called before the head and the arm."""
    if person.carried != "umbrella":
        return
    x, y = arm.end
    colour = COLOURS[person.carried_colour]
    middle = x * 0.45
    painter.line([(x, y + 0.03), (middle, -0.09)], 0.011, (60, 60, 62))
    painter.dome((middle, -0.03), 0.225, 0.115, colour)
    for share in (-0.5, 0.0, 0.5):
        end = (middle + 0.3 * share, -0.03)
        painter.line([(middle, -0.14), end], 0.007, rim(colour))


def _backpack(painter: Painter, person: Identity, body: Skeleton) -> None:
    fill = cloth(person.bag_colour)
    edge = rim(fill.colour)
    if body.view == "front":
        for side in (-1.0, 1.0):
            x = side * body.shoulder * 0.68
            painter.line([(x, 0.172), (x * 1.05, 0.36)], 0.022, fill.colour)
    elif body.view == "back":
        wide = 0.092
        top = [(-wide * 0.8, 0.185), (wide * 0.8, 0.185), (wide, 0.225)]
        painter.polygon([*top, (wide, 0.45), (-wide, 0.45), (-wide, 0.225)], fill)
        painter.line([(-wide, 0.30), (wide, 0.30)], 0.011, edge)
        painter.polygon(_box(0.0, 0.385, 0.062, 0.04), Cloth(edge))
        painter.polygon(_box(0.0, 0.388, 0.053, 0.032), Cloth(shade(fill.colour, 0.9)))
    else:
        strap = [(-body.chest * 0.3, 0.165), (0.02, 0.24), (-body.chest * 0.5, 0.34)]
        painter.line(strap, 0.022, fill.colour)


def _shoulder_bag(painter: Painter, person: Identity, body: Skeleton) -> None:
    fill = cloth(person.bag_colour)
    x = body.hip * 0.95 if body.view != "side" else -0.01
    start = -body.shoulder * 0.62 if body.view != "side" else 0.03
    painter.line([(start, 0.168), (x, 0.46)], 0.020, rim(fill.colour))
    painter.line([(start, 0.168), (x, 0.46)], 0.014, fill.colour)
    painter.polygon(_box(x, 0.505, 0.074, 0.058), Cloth(rim(fill.colour)))
    painter.polygon(_box(x, 0.505, 0.066, 0.051), fill)
    flap = [(x - 0.066, 0.455), (x + 0.066, 0.455), (x, 0.51)]
    painter.polygon(flap, Cloth(shade(fill.colour, 0.84)))


def _handbag(painter: Painter, person: Identity, body: Skeleton) -> None:
    _hand_bag(painter, body.arms[1].end, cloth(person.bag_colour), 0.075, 0.085)


def _suitcase(painter: Painter, person: Identity, body: Skeleton) -> None:
    fill = cloth(person.bag_colour)
    edge = rim(fill.colour)
    hand = body.arms[1].end
    x = -0.19 if body.view == "side" else 0.175
    painter.line([hand, (x, 0.70)], 0.011, (70, 70, 74))
    painter.polygon(_box(x, 0.82, 0.078, 0.128), Cloth(edge))
    painter.polygon(_box(x, 0.82, 0.069, 0.119), fill)
    for shift in (-0.03, 0.03):
        painter.line([(x + shift, 0.72), (x + shift, 0.92)], 0.009, edge)
    for shift in (-0.05, 0.05):
        painter.ellipse((x + shift, 0.962), 0.016, 0.016, (20, 20, 22))


_BAGS = {
    "backpack": _backpack,
    "shoulder bag": _shoulder_bag,
    "handbag": _handbag,
    "suitcase": _suitcase,
}


def _hand_bag(
    painter: Painter, hand: Point, fill: Cloth, wide: float, tall: float
) -> None:
    """Draw a bag that hangs from a hand by its handle."""
    x, y = hand
    edge = rim(fill.colour)
    loop = [(x - wide * 0.45, y + 0.055), (x, y), (x + wide * 0.45, y + 0.055)]
    painter.line(loop, 0.012, edge)
    corners = [(x - wide * 0.82, y + 0.05), (x + wide * 0.82, y + 0.05)]
    bottom = [(x + wide, y + 0.05 + tall), (x - wide, y + 0.05 + tall)]
    painter.polygon([*corners, *bottom], fill)
    painter.line([corners[0], corners[1]], 0.014, edge)


def _box(x: float, y: float, wide: float, tall: float) -> list[Point]:
    """Return the corners of an upright box around a point."""
    return [
        (x - wide, y - tall),
        (x + wide, y - tall),
        (x + wide, y + tall),
        (x - wide, y + tall),
    ]
