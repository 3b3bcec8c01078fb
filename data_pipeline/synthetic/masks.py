# SPDX-License-Identifier: Apache-2.0
"""Where each thing of a drawn picture is, and which words of a caption name it.

A thing's pixels are those that change if the thing has another colour.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from jaxtyping import Bool
from PIL import Image

from data_pipeline.synthetic import phrases
from data_pipeline.synthetic.attributes import COLOURS, NONE, Identity
from data_pipeline.synthetic.captions import pieces
from data_pipeline.synthetic.clothes import HAIR

NOUNS = {
    "hair": frozenset("hair bob ponytail bun curls".split()),
    "upper": frozenset(
        "shirt tee sweater pullover jumper hoodie sweatshirt top dress frock".split()
    ),
    "outer": frozenset("jacket coat overcoat vest".split()),
    "lower": frozenset("trousers pants jeans shorts skirt leggings".split()),
    "shoes": frozenset("sneakers trainers shoes boots sandals".split()),
    "hat": frozenset("cap beanie hat".split()),
    "eyewear": frozenset("glasses spectacles sunglasses".split()),
    "scarf": frozenset(("scarf",)),
    "bag": frozenset("backpack rucksack bag handbag purse suitcase case".split()),
    "carried": frozenset("phone umbrella book folder cup bag".split()),
}
"""The words that name each thing; the others of its phrases tell of it."""

PATTERN = "pattern"
"""The second colour of the upper garment."""

_LEAST = 6  # of 255; JPEG and noise play no part here
_COLOURLESS = ("eyewear", "carried")

Draw = Callable[[Identity], Image.Image]
# The words of a phrase, each with what it names, if anything: (thing, kind).
Tagged = tuple[tuple[str, tuple[str, str] | None], ...]


@dataclass(frozen=True)
class Named:
    """A word that names a thing or a colour of it.

    Attributes:
        place: Index of the word among the caption's `pieces`.
        thing: A key of `NOUNS`, or `PATTERN`.
        kind: "thing" or "colour".
    """

    place: int
    thing: str
    kind: str


def mask_of(thing: str, person: Identity, draw: Draw) -> Bool[np.ndarray, "h w"]:
    """Return the pixels that show a thing.

    They are those that differ if the thing, and a pattern on it, has either of two
    other colours. What has no colour of its own is left out instead.

    Args:
        thing: A key of `NOUNS`, or `PATTERN`.
        person: Who is in the picture.
        draw: Draws a look in the picture's shot, in the pose of `person`.
    """
    first = np.asarray(draw(person), np.int16)
    changes = [
        np.abs(np.asarray(draw(other), np.int16) - first).max(axis=-1) >= _LEAST
        for other in _changed(thing, person)
    ]
    return np.logical_or.reduce(changes, initial=False) & np.ones(first.shape[:2], bool)


def _changed(thing: str, person: Identity) -> list[Identity]:
    """Return looks in which nothing but the thing differs."""
    field = "hair_colour" if thing == "hair" else f"{thing}_colour"
    now = getattr(person, field, NONE)
    if now == NONE:
        # Glasses, a phone and a cup have no colour to change.
        return [replace(person, **{thing: NONE})] if thing in _COLOURLESS else []
    fields = [field]
    if thing == "upper" and person.pattern_colour != NONE:
        fields.append("pattern_colour")
    table = HAIR if thing == "hair" else COLOURS
    others = [name for name in ("red", "grey", "black") if table[name] != table[now]]
    return [replace(person, **dict.fromkeys(fields, name)) for name in others[:2]]


def named(person: Identity, words: Sequence[str]) -> list[Named]:
    """Return the words of a caption that name what a person wears or holds.

    Args:
        person: Whom the caption describes.
        words: Its `pieces`.
    """
    found = []
    plain = [_plain(word) for word in words]
    for thing in NOUNS:
        spoken = sorted(set(_phrases(thing, person)), key=len, reverse=True)
        place, phrase = next(
            (
                (place, phrase)
                for phrase in spoken
                for place in range(len(plain))
                if plain[place : place + len(phrase)] == [word for word, _ in phrase]
            ),
            (0, ()),
        )
        found += [
            Named(place + at, *names)
            for at, (_, names) in enumerate(phrase)
            if names is not None
        ]
    return sorted(found, key=lambda each: each.place)


def _phrases(thing: str, person: Identity) -> Iterator[Tagged]:
    """Yield all ways to name a thing, with what each word of them names."""
    colour = getattr(person, f"{thing}_colour", NONE)
    table = phrases.HAIR_COLOURS if thing == "hair" else phrases.COLOURS
    second = phrases.COLOURS.get(person.pattern_colour, ("",))
    for template, kind in _templates(thing, person):
        for c, d in product(table.get(colour, ("",)), second):
            slots = {
                "{c}": (c, (thing, "colour")),
                "{d}": (d, (PATTERN, "colour")),
                "{k}": (kind, None),
            }
            yield tuple(_tagged(template, slots, thing))


def _tagged(
    template: str, slots: dict[str, tuple[str, tuple[str, str] | None]], thing: str
) -> Iterator[tuple[str, tuple[str, str] | None]]:
    for part in re.split(r"(\{.\})", template):
        text, names = slots.get(part, (part, None))
        for word in map(_plain, pieces(text)):
            noun = (thing, "thing") if word in NOUNS[thing] else None
            yield word, names or noun


def _templates(thing: str, person: Identity) -> list[tuple[str, str]]:
    """Return the templates of a thing, each with a word or words for its {k}."""
    if thing == "scarf":
        worn = person.scarf_colour != NONE
        return [(template, "") for template in phrases.SCARVES if worn]
    kind = getattr(person, thing)
    if thing == "upper":
        names = phrases.UPPER.get(kind, ())
        spoken = {*phrases.PATTERNS["plain"], *phrases.PATTERNS.get(person.pattern, ())}
        sleeves = [
            "",
            *(f"{each} " for each in phrases.SLEEVES.get(person.sleeves, ())),
        ]
        kinds = [f"{each}{name}" for each, name in product(sleeves, names)]
        return list(product(sorted(spoken), kinds))
    if thing == "outer":
        fits = sorted({each for fit in phrases.FITS.values() for each in fit})
        return list(product(fits, phrases.OUTER.get(kind, ())))
    return [(template, "") for template in _simple(thing).get(kind, ())]


def _simple(thing: str) -> dict[str, tuple[str, ...]]:
    """Return the templates, by kind, of a thing that is named in one way."""
    held = {"bag": phrases.BAGS, "carried": phrases.CARRIED}
    if thing in held:
        return {
            kind: tuple(text for pair in pairs for text in pair)
            for kind, pairs in held[thing].items()
        }
    if thing == "hair":
        front = phrases.HAIR_FROM_THE_FRONT
        return {kind: (*t, *front.get(kind, ())) for kind, t in phrases.HAIR.items()}
    tables = {"lower": phrases.LOWER, "shoes": phrases.SHOES}
    return (tables | {"hat": phrases.HATS, "eyewear": phrases.EYEWEAR})[thing]


def _plain(word: str) -> str:
    """Return a word in the form that templates have it."""
    return "a" if word == "an" else word
