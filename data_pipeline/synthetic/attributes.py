# SPDX-License-Identifier: Apache-2.0
"""The lasting attributes of drawn people, and how a population is made from them.

Identities come in families: each person is the previous one with two or three groups of
attributes changed, so that most attributes are shared and none is decisive on its own.
Near-twins differ from the previous person in one group.
A checksum divides the attribute tuples into `SEED_CLASSES` disjoint classes, and a seed
uses only the tuples of its own class: populations whose seeds differ modulo
`SEED_CLASSES` share no identity, by construction.
"""

import itertools
import zlib
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import accumulate

import numpy as np

NONE = "none"
SEED_CLASSES = 64
FAMILY = 4
FAMILY_APART, TWINS_APART = (2, 3), (1,)
"""In how many groups of attributes people differ from the one before."""
PATIENCE = 20_000
"""Draws after which a person like the one before is given up; most take 100."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (26, 26, 28),
    "white": (242, 242, 240),
    "grey": (132, 134, 138),
    "red": (208, 30, 36),
    "maroon": (128, 16, 54),
    "orange": (244, 130, 24),
    "yellow": (248, 212, 44),
    "green": (38, 156, 72),
    "dark green": (22, 92, 42),
    "light blue": (132, 196, 242),
    "blue": (30, 88, 208),
    "navy": (28, 42, 124),
    "purple": (124, 52, 166),
    "pink": (246, 142, 186),
    "brown": (134, 82, 38),
    "beige": (220, 196, 154),
}
DARK = frozenset({"black", "navy", "maroon", "dark green", "brown", "purple", "blue"})


@dataclass(frozen=True)
class Identity:
    """The lasting attributes of one person; every value is one of `CHOICES`."""

    figure: str
    build: str
    skin: str
    hair: str
    hair_colour: str
    upper: str
    upper_colour: str
    pattern: str
    pattern_colour: str
    sleeves: str
    outer: str
    outer_fit: str
    outer_colour: str
    lower: str
    lower_colour: str
    shoes: str
    shoes_colour: str
    bag: str
    bag_colour: str
    hat: str
    hat_colour: str
    eyewear: str
    carried: str
    carried_colour: str
    scarf_colour: str


_GARMENT_COLOURS = {
    **{"black": 13, "white": 11, "grey": 9, "navy": 7, "blue": 9, "red": 9},
    **{"light blue": 6, "green": 6, "dark green": 5, "maroon": 4, "brown": 4},
    **{"beige": 5, "pink": 5, "yellow": 6, "orange": 4, "purple": 4},
}
_LOWER_COLOURS = {
    **{"black": 20, "blue": 16, "navy": 12, "grey": 13, "white": 8, "beige": 10},
    **{"brown": 7, "dark green": 5, "light blue": 5, "red": 4, "maroon": 3},
}
_SHOE_COLOURS = {"black": 28, "white": 28, "brown": 16, "grey": 10, "red": 9, "blue": 9}
_THING_COLOURS = {
    **{"black": 20, "brown": 12, "red": 14, "blue": 12, "grey": 8, "white": 8},
    **{"yellow": 7, "green": 7, "pink": 6, "orange": 6},
}

# The possible values of each attribute, with the weights by which they are drawn.
CHOICES: dict[str, dict[str, int]] = {
    "figure": {"man": 50, "woman": 50},
    "build": {"slim": 30, "average": 40, "heavy": 30},
    "skin": {"light": 50, "tan": 25, "dark": 25},
    "hair": {
        **{"short": 34, "bob": 14, "long": 20, "ponytail": 12, "bun": 8},
        **{"bald": 6, "curly": 6},
    },
    "hair_colour": {"black": 34, "brown": 30, "blond": 18, "red": 8, "grey": 10},
    "upper": {
        **{"t-shirt": 28, "shirt": 20, "sweater": 16, "hoodie": 14},
        **{"tank top": 8, "dress": 14},
    },
    "upper_colour": _GARMENT_COLOURS,
    "pattern": {
        **{"plain": 46, "striped": 16, "checked": 12, "dotted": 8},
        **{"two-tone": 8, "logo": 10},
    },
    "pattern_colour": _GARMENT_COLOURS,
    "sleeves": {"long": 55, "short": 45},
    "outer": {NONE: 56, "jacket": 22, "coat": 12, "vest": 10},
    "outer_fit": {"open": 60, "closed": 40},
    "outer_colour": _GARMENT_COLOURS,
    "lower": {
        **{"trousers": 28, "jeans": 24, "shorts": 18, "skirt": 14},
        **{"long skirt": 6, "leggings": 10},
    },
    "lower_colour": _LOWER_COLOURS,
    "shoes": {"sneakers": 46, "boots": 22, "sandals": 12, "shoes": 20},
    "shoes_colour": _SHOE_COLOURS,
    "bag": {
        **{NONE: 34, "backpack": 24, "shoulder bag": 18, "handbag": 14},
        **{"suitcase": 10},
    },
    "bag_colour": _THING_COLOURS,
    "hat": {NONE: 66, "cap": 15, "beanie": 10, "sun hat": 9},
    "hat_colour": _THING_COLOURS,
    "eyewear": {NONE: 68, "glasses": 18, "sunglasses": 14},
    "carried": {
        **{NONE: 56, "phone": 10, "umbrella": 9, "book": 8, "cup": 7},
        **{"shopping bag": 10},
    },
    "carried_colour": _THING_COLOURS,
    "scarf_colour": {
        NONE: 80,
        "red": 6,
        "white": 4,
        "yellow": 4,
        "green": 3,
        "blue": 3,
    },
}

# Each group counts as one difference between two people.
GROUPS: dict[str, tuple[str, ...]] = {
    "figure": ("figure", "build"),
    "skin": ("skin",),
    "hair": ("hair", "hair_colour"),
    "upper": ("upper", "upper_colour", "pattern", "pattern_colour", "sleeves"),
    "outer": ("outer", "outer_fit", "outer_colour"),
    "lower": ("lower", "lower_colour"),
    "shoes": ("shoes", "shoes_colour"),
    "bag": ("bag", "bag_colour"),
    "hat": ("hat", "hat_colour"),
    "eyewear": ("eyewear",),
    "carried": ("carried", "carried_colour"),
    "scarf": ("scarf_colour",),
}
_GROUP_WEIGHTS = (4, 1, 8, 20, 12, 20, 4, 10, 8, 2, 6, 4)  # how often each is redrawn


def _cumulative(weights: Iterable[int]) -> list[float]:
    """Return the upper ends of the parts of [0, 1] in proportion to the weights."""
    sums = list(accumulate(weights))
    return [value / sums[-1] for value in sums]


_FIELDS = tuple(CHOICES)
_NAMES = tuple(GROUPS)
_GROUP_CUMULATIVE = _cumulative(_GROUP_WEIGHTS)
_VALUES = {field: tuple(weights) for field, weights in CHOICES.items()}
_CUMULATIVE = {field: _cumulative(w.values()) for field, w in CHOICES.items()}

_FOR_MEN = {
    ("hair", "bun"): "short",
    ("hair", "bob"): "short",
    ("upper", "dress"): "t-shirt",
    ("lower", "skirt"): "shorts",
    ("lower", "long skirt"): "trousers",
    ("lower", "leggings"): "trousers",
    ("bag", "handbag"): "shoulder bag",
}
_SLEEVES = {"t-shirt": "short", "sweater": "long", "hoodie": "long", "tank top": NONE}
_DENIM = ("black", "blue", "grey", "light blue", "navy", "white")
_COLOURLESS = (NONE, "phone", "cup")


def identity_attributes(seed: int, count: int, *, twins: float = 0.0) -> list[Identity]:
    """Return the first `count` identities of the population of `seed`, all distinct.

    A longer list begins with the shorter one. Two lists share no identity if their
    seeds differ modulo `SEED_CLASSES`.

    Args:
        seed: Of the population.
        count: Of its people.
        twins: Share of people that differ from the one before in a single group.

    Raises:
        ValueError: If `seed` or `count` is negative.
    """
    if seed < 0 or count < 0:
        raise ValueError(
            f"wanted a seed and a count of at least 0, got seed {seed} and count "
            f"{count}"
        )
    rng = np.random.default_rng([seed, 0x9E0])
    # Of its own, so that nobody else changes.
    is_twin = np.random.default_rng([seed, 0x2B]).random(count) < twins
    raw: dict[str, str] = {}
    people: list[Identity] = []
    taken: set[Identity] = set()
    for index in range(count):
        twin = bool(index and is_twin[index])
        before = people[-1] if twin or index % FAMILY else None
        apart = TWINS_APART if twin else FAMILY_APART
        raw, person = _next_identity(
            rng, raw, before, taken, seed % SEED_CLASSES, apart=apart
        )
        people.append(person)
        taken.add(person)
    return people


def seed_class(person: Identity) -> int:
    """Return the class, below `SEED_CLASSES`, of the seeds that may draw a person."""
    return _class_of(asdict(person))


def differences(first: Identity, second: Identity) -> int:
    """Return in how many groups of attributes (`GROUPS`) two people differ."""
    return sum(
        any(getattr(first, field) != getattr(second, field) for field in fields)
        for fields in GROUPS.values()
    )


def _class_of(values: dict[str, str]) -> int:
    return zlib.crc32("|".join(values.values()).encode()) % SEED_CLASSES


def _next_identity(
    rng: np.random.Generator,
    raw: dict[str, str],
    before: Identity | None,
    taken: set[Identity],
    wanted_class: int,
    *,
    apart: tuple[int, ...],
) -> tuple[dict[str, str], Identity]:
    """Draw until the tuple is new, in the seed's class, and `apart` from `before`.

    Few of a person's near-twins are in the class, and of some none: they are given up
    for somebody unlike anyone.
    """
    for attempt in itertools.count():
        if attempt == PATIENCE:
            before = None
        draft = _draw(rng, _FIELDS) if before is None else _mutate(rng, raw, apart)
        values = _canonical(draft)
        if _class_of(values) != wanted_class:
            continue
        person = Identity(**values)
        near = before is None or differences(before, person) in apart
        if near and person not in taken:
            return draft, person


def _draw(rng: np.random.Generator, fields: tuple[str, ...]) -> dict[str, str]:
    """Draw one value for each of the fields by its weights."""
    chances = rng.random(len(fields)).tolist()
    return {
        field: _VALUES[field][bisect_right(_CUMULATIVE[field], chance)]
        for field, chance in zip(fields, chances, strict=True)
    }


def _mutate(
    rng: np.random.Generator, raw: dict[str, str], apart: tuple[int, ...]
) -> dict[str, str]:
    """Redraw as many groups of a person's attributes as may differ."""
    count, *chances = rng.random(1 + max(FAMILY_APART)).tolist()
    chances = chances[: apart[0] if count < 0.5 else apart[-1]]
    chosen = {_NAMES[bisect_right(_GROUP_CUMULATIVE, chance)] for chance in chances}
    # In the order of GROUPS, because a set's order differs between processes.
    fields = [field for name in _NAMES if name in chosen for field in GROUPS[name]]
    return {**raw, **_draw(rng, tuple(fields))}


def _canonical(draft: dict[str, str]) -> dict[str, str]:
    """Return the one spelling of a look, fixing what other attributes rule out."""
    values = dict(draft)
    if values["figure"] == "man":
        for (field, worn), instead in _FOR_MEN.items():
            if values[field] == worn:
                values[field] = instead
    _settle_head(values)
    _settle_clothes(values)
    for thing in ("bag", "hat", "carried"):
        if values[thing] in _COLOURLESS:
            values[f"{thing}_colour"] = NONE
    return values


def _settle_head(values: dict[str, str]) -> None:
    """Under a hat nobody is bald or wears a bun; a bald head has no hair colour."""
    if values["hat"] != NONE and values["hair"] in ("bald", "bun"):
        values["hair"] = "short"
    if values["hair"] == "bald":
        values["hair_colour"] = NONE


def _settle_clothes(values: dict[str, str]) -> None:
    """Settle the clothes: closed outer garments hide the upper one, coats the knees."""
    if values["outer"] == NONE:
        values["outer_fit"] = values["outer_colour"] = NONE
    elif values["upper"] == "dress":
        values["upper"] = "t-shirt"
    if values["outer"] == "vest":
        values["outer_fit"] = "open"
    if values["outer"] == "coat":
        hidden = {"shorts": "trousers", "skirt": "long skirt"}
        values["lower"] = hidden.get(values["lower"], values["lower"])
    if values["lower"] == "jeans" and values["lower_colour"] not in _DENIM:
        values["lower"] = "trousers"
    if values["upper"] == "dress":
        values["lower"] = values["lower_colour"] = NONE
    values["sleeves"] = _SLEEVES.get(values["upper"], values["sleeves"])
    if values["outer"] in ("jacket", "coat"):
        values["sleeves"] = NONE
    if values["outer_fit"] == "closed":
        values.update(dict.fromkeys(GROUPS["upper"], NONE))
    if values["pattern"] in (NONE, "plain"):
        values["pattern_colour"] = NONE
    elif (values["pattern_colour"] in DARK) == (values["upper_colour"] in DARK):
        dark = values["upper_colour"] in DARK
        values["pattern_colour"] = "white" if dark else "black"
