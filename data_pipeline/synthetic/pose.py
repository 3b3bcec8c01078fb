# SPDX-License-Identifier: Apache-2.0
"""The joints of a walking person, in the person's own units.

x is 0 in the middle of the body and increases towards the side that the person faces in
side view; y is 0 at the crown and 1 at the soles.
"""

from dataclasses import dataclass

import numpy as np

from data_pipeline.synthetic.attributes import Identity

Point = tuple[float, float]

SHOULDER_Y = 0.185
WAIST_Y = 0.45
HIP_Y = 0.51
KNEE_Y = 0.74
HEAD_Y = 0.078

_BUILDS = {"slim": 0.84, "average": 1.0, "heavy": 1.27}


@dataclass(frozen=True)
class Limb:
    """An arm (shoulder, elbow, hand) or a leg (hip, knee, ankle)."""

    root: Point
    middle: Point
    end: Point


@dataclass(frozen=True)
class Skeleton:
    """A posed body; the first limb of each pair is the far one in side view."""

    view: str
    shoulder: float
    chest: float
    waist: float
    hip: float
    arm_width: float
    leg_width: float
    arms: tuple[Limb, Limb]
    legs: tuple[Limb, Limb]


def pose(person: Identity, *, view: str, stride: float) -> Skeleton:
    """Pose a person for a view; `stride` runs from -1 to 1 through a walking step."""
    wide = _BUILDS[person.build]
    man = person.figure == "man"
    depth = 0.66 if view == "side" else 1.0
    shoulder = (0.122 if man else 0.102) * (0.55 + 0.45 * wide) * depth
    waist = (0.098 if man else 0.080) * wide * depth
    hip = (0.094 if man else 0.104) * wide * depth
    leg_width = 0.074 * (0.45 + 0.55 * wide)
    arms = _arms(person, view, shoulder, stride)
    legs = _side_legs(stride) if view == "side" else _front_legs(hip, leg_width, stride)
    return Skeleton(
        view=view,
        shoulder=shoulder,
        chest=max(shoulder * 0.94, waist),
        waist=waist,
        hip=hip,
        arm_width=0.056 * (0.5 + 0.5 * wide),
        leg_width=leg_width,
        arms=arms,
        legs=legs,
    )


def _front_legs(hip: float, width: float, stride: float) -> tuple[Limb, Limb]:
    """Return legs seen from the front or back: the trailing foot is raised."""
    legs = []
    for side in (-1.0, 1.0):
        lift = 0.04 * max(0.0, side * stride)
        root = side * max(hip * 0.5, width * 0.5)
        foot = root * 1.12 - side * 0.02 * abs(stride)
        knee = root * 1.08
        legs.append(
            Limb((root, HIP_Y), (knee, KNEE_Y - lift / 2), (foot, 0.955 - lift))
        )
    return legs[0], legs[1]


def _side_legs(stride: float) -> tuple[Limb, Limb]:
    """Return legs seen from the side: one forward, one back with a bent knee."""
    legs = []
    for side in (-1.0, 1.0):
        thigh = 0.42 * side * stride
        shank = thigh - 0.16 - 0.3 * max(0.0, -side * stride)
        knee = (0.23 * float(np.sin(thigh)), HIP_Y + 0.23 * float(np.cos(thigh)))
        ankle = (
            knee[0] + 0.215 * float(np.sin(shank)),
            knee[1] + 0.215 * float(np.cos(shank)),
        )
        legs.append(Limb((0.0, HIP_Y), knee, ankle))
    return legs[0], legs[1]


def _arms(
    person: Identity, view: str, shoulder: float, stride: float
) -> tuple[Limb, Limb]:
    """Return arms that swing against the legs; the first holds what is carried."""
    first = _raised_arm(person.carried, view, shoulder)
    hanging = [_hanging_arm(side, view, shoulder, stride) for side in (-1.0, 1.0)]
    return first or hanging[0], hanging[1]


def _raised_arm(carried: str, view: str, shoulder: float) -> Limb | None:
    """Return the arm that holds something up; None if the hand hangs down."""
    heights = {"phone": 0.24, "umbrella": 0.30, "book": 0.34, "cup": 0.29}
    if carried not in heights:
        return None
    y = heights[carried]
    if view == "side":
        return Limb((0.0, SHOULDER_Y + 0.02), (0.03, 0.375), (0.13, y))
    reach = shoulder + 0.05 if carried == "umbrella" else shoulder * 0.45
    elbow = (-shoulder - 0.04, 0.375)
    return Limb((-shoulder + 0.015, SHOULDER_Y + 0.02), elbow, (-reach, y))


def _hanging_arm(side: float, view: str, shoulder: float, stride: float) -> Limb:
    """Return an arm that hangs and swings with the step."""
    swing = -side * stride
    if view == "side":
        elbow = (0.09 * swing - 0.01, 0.345)
        return Limb((0.0, SHOULDER_Y + 0.02), elbow, (0.16 * swing + 0.03, 0.48))
    elbow = (side * (shoulder + 0.026), 0.35)
    hand = (side * (shoulder + 0.034 - 0.01 * swing), 0.495 - 0.02 * abs(swing))
    return Limb((side * (shoulder - 0.015), SHOULDER_Y + 0.02), elbow, hand)
