# SPDX-License-Identifier: Apache-2.0
"""A whole person, drawn from back to front."""

from data_pipeline.synthetic import clothes, things
from data_pipeline.synthetic.attributes import Identity
from data_pipeline.synthetic.painter import Cloth, Colour, Painter, rim, shade
from data_pipeline.synthetic.pose import HEAD_Y, Limb, Skeleton


def draw_figure(painter: Painter, person: Identity, body: Skeleton) -> None:
    """Draw the person onto the painter's picture, in the body's view and pose."""
    far, near = body.arms
    raised = not _hangs(far)
    things.draw_umbrella(painter, person, far)
    _draw_hair_behind(painter, person, body)
    things.draw_bag_behind(painter, person, body)
    if raised and body.view == "back":
        # Anything held up in front of the chest is hidden by the body.
        things.draw_carried(painter, person, far)
    if not raised or body.view != "front":
        _draw_arm(painter, person, body, far)
    _draw_clothes(painter, person, body)
    if person.bag != "handbag":
        things.draw_bag(painter, person, body)
    _draw_arm(painter, person, body, near)
    _draw_head(painter, person, body)
    if person.bag == "handbag":
        things.draw_bag(painter, person, body)
    if raised and body.view == "front":
        _draw_arm(painter, person, body, far)
    if not raised or body.view != "back":
        things.draw_carried(painter, person, far)


def _draw_clothes(painter: Painter, person: Identity, body: Skeleton) -> None:
    """Draw the legs, then what covers the torso, from the skin outwards."""
    for leg in body.legs:
        clothes.draw_leg(painter, person, body, leg)
    clothes.draw_lower(painter, person, body)
    painter.line([(0.0, HEAD_Y), (0.0, 0.175)], 0.058, _dimmed_skin(person))
    clothes.draw_upper(painter, person, body)
    clothes.draw_outer(painter, person, body)


def _draw_arm(painter: Painter, person: Identity, body: Skeleton, arm: Limb) -> None:
    """Draw a bare arm, then the sleeve as far as it reaches."""
    painter.limb(arm, body.arm_width * 0.86, clothes.skin(person))
    covered = clothes.sleeve(person)
    if covered is not None:
        fill, until = covered
        painter.limb(arm, body.arm_width * 1.12, fill, until=until)


def _draw_head(painter: Painter, person: Identity, body: Skeleton) -> None:
    """Draw scarf, face, hair, glasses and hat."""
    things.draw_scarf(painter, person, body)
    face = clothes.SKIN[person.skin]
    painter.ellipse((0.0, HEAD_Y), 0.061, 0.077, rim(face))
    painter.ellipse((0.0, HEAD_Y), 0.057, 0.073, face)
    if body.view == "front":
        for x in (-0.024, 0.024):
            painter.ellipse((x, HEAD_Y), 0.009, 0.007, (30, 24, 22))
        painter.line([(-0.018, 0.116), (0.018, 0.116)], 0.008, shade(face, 0.66))
    elif body.view == "side":
        painter.polygon(
            [(0.05, 0.07), (0.078, 0.098), (0.05, 0.104)], clothes.skin(person)
        )
        painter.ellipse((0.036, HEAD_Y - 0.004), 0.008, 0.007, (30, 24, 22))
    _draw_hair(painter, person, body)
    things.draw_eyewear(painter, person, body)
    things.draw_hat(painter, person, body)


def _draw_hair_behind(painter: Painter, person: Identity, body: Skeleton) -> None:
    """Draw the hair that falls behind the head and shoulders."""
    colour = clothes.HAIR[person.hair_colour]
    ends = {"bob": 0.155, "long": 0.27}
    if person.hair not in ends:
        return
    end = ends[person.hair]
    if body.view == "side":
        back = [(0.01, 0.03), (-0.072, 0.06), (-0.085, end), (-0.01, end)]
    else:
        back = [(-0.068, 0.05), (0.068, 0.05), (0.086, end), (-0.086, end)]
    painter.polygon(back, Cloth(colour))


def _draw_hair(painter: Painter, person: Identity, body: Skeleton) -> None:
    """Draw the hair on the head in this view, and any bun, tail or curls."""
    if person.hair == "bald":
        return
    colour = clothes.HAIR[person.hair_colour]
    if person.hair == "curly":
        _draw_curls(painter, body, colour)
    elif body.view == "back":
        painter.ellipse((0.0, HEAD_Y - 0.006), 0.063, 0.074, colour)
    elif body.view == "side":
        painter.dome((-0.004, 0.066), 0.064, 0.072, colour)
        nape = 0.125 if person.hair == "short" else 0.14
        back = [(-0.068, 0.06), (-0.004, 0.06), (-0.02, nape), (-0.058, nape)]
        painter.polygon(back, Cloth(colour))
    else:
        painter.dome((0.0, 0.056), 0.063, 0.062, colour)
        for side in (-1.0, 1.0):
            low = 0.085 if person.hair in ("short", "ponytail", "bun") else 0.13
            lock = [(side * 0.063, 0.05), (side * 0.045, 0.05), (side * 0.055, low)]
            painter.polygon([*lock, (side * 0.066, low)], Cloth(colour))
    _draw_long_parts(painter, person, body, colour)


def _draw_long_parts(
    painter: Painter, person: Identity, body: Skeleton, colour: Colour
) -> None:
    """Draw what falls over the back, a ponytail, or a bun on top."""
    edge = shade(colour, 1.25)
    if person.hair in ("long", "bob") and body.view == "back":
        end = 0.29 if person.hair == "long" else 0.155
        fall = [(-0.063, 0.07), (0.063, 0.07), (0.080, end), (-0.080, end)]
        painter.polygon(fall, Cloth(colour))
        painter.line([(0.0, 0.08), (0.0, end)], 0.007, edge)
    if person.hair == "bun":
        x = -0.05 if body.view == "side" else 0.0
        y = 0.03 if body.view == "side" else -0.006
        painter.ellipse((x, y), 0.040, 0.036, edge)
        painter.ellipse((x, y), 0.035, 0.031, colour)
    if person.hair == "ponytail" and body.view != "front":
        x = -0.062 if body.view == "side" else 0.0
        painter.ellipse((x, 0.06), 0.018, 0.018, (200, 60, 80))
        drop = -0.05 if body.view == "side" else 0.0
        tail = [(x - 0.018, 0.07), (x + 0.018, 0.07), (x + drop + 0.026, 0.22)]
        painter.polygon([*tail, (x + drop - 0.022, 0.24)], Cloth(colour))


def _draw_curls(painter: Painter, body: Skeleton, colour: Colour) -> None:
    """Draw a wide crown of curls."""
    if body.view == "back":
        painter.ellipse((0.0, 0.06), 0.095, 0.085, colour)
        return
    shift = -0.03 if body.view == "side" else 0.0
    painter.dome((shift, 0.052), 0.094, 0.080, colour)
    for x in (-0.075, 0.075):
        if body.view == "front" or x < 0:
            painter.ellipse((x + shift * 0.5, 0.07), 0.030, 0.045, colour)


def _dimmed_skin(person: Identity) -> Colour:
    """Return the shaded skin of the neck."""
    return shade(clothes.SKIN[person.skin], 0.86)


def _hangs(arm: Limb) -> bool:
    """Return whether the hand is lower than the elbow."""
    return arm.end[1] > arm.middle[1]
