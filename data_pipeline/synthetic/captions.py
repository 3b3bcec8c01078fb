# SPDX-License-Identifier: Apache-2.0
"""Sentences about what a picture's view shows, in varying words and order."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_pipeline.synthetic import phrases
from data_pipeline.synthetic.attributes import NONE, Identity
from data_pipeline.synthetic.scene import Shot

# With the start and end tokens a caption fits into 56 positions.
FEWEST_PIECES, MOST_PIECES = 16, 54
_PIECES = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_+")
# How often a visible fact is mentioned.
_TOLD = {
    **{"upper": 0.97, "outer": 0.97, "lower": 0.95, "shoes": 0.6, "hair": 0.7},
    **{"bag": 0.92, "hat": 0.9, "eyewear": 0.65, "carried": 0.85, "scarf": 0.9},
    **{"build": 0.45, "skin": 0.15, "motion": 0.55, "sleeves": 0.5},
}
# Mentioned only sometimes, though no view hides them.
_ALWAYS_SEEN = ("build", "motion", "skin", "sleeves")
# Left out in this order when a caption is too long.
_SPARE = ("skin", "motion", "build", "shoes", "eyewear", "hair", "sleeves", "scarf")


@dataclass
class _Facts:
    """What a caption will say, as phrases about looks, clothes and things."""

    subject: str
    pronoun: str
    motion: str = ""
    looks: list[str] = field(default_factory=list)
    worn: list[str] = field(default_factory=list)
    held: list[tuple[str, str]] = field(default_factory=list)


def pieces(caption: str) -> list[str]:
    """Return the words, digits and runs of punctuation that the tokenizer separates."""
    return _PIECES.findall(caption.lower())


def visible_aspects(person: Identity, shot: Shot) -> frozenset[str]:
    """Return the names of what this view of a person shows.

    They are those of attributes (`hair`, `upper`, `outer`, `lower`, `shoes`, `bag`,
    `hat`, `eyewear`, `carried`, `scarf`), and `fit` (outer garment open or closed),
    `logo` (a print on the chest) and `tail` (how hair is tied at the back).
    """
    front, back = shot.view == "front", shot.view == "back"
    hidden_hands = shot.occluder == "edge"
    covered = person.outer != NONE and not (front and person.outer_fit == "open")
    shows = {
        "hair": True,
        "tail": not front,
        "upper": person.upper != NONE and not covered,
        "logo": person.pattern == "logo" and front and not covered,
        "outer": person.outer != NONE,
        "fit": person.outer != NONE and front,
        "lower": person.lower != NONE,
        "shoes": shot.occluder not in ("low", "cut"),
        "hat": person.hat != NONE,
        "scarf": person.scarf_colour != NONE,
        "eyewear": person.eyewear != NONE and not back,
        "bag": _bag_shows(person.bag, front=front, hidden_hands=hidden_hands),
        "carried": _carried_shows(person.carried, back, hidden_hands=hidden_hands),
    }
    return frozenset(name for name, shown in shows.items() if shown)


def write_caption(
    person: Identity, shot: Shot, rng: np.random.Generator, *, omitted: float = 0.0
) -> str:
    """Return one caption for a picture, of at most `MOST_PIECES` pieces.

    Args:
        person: Who is in the picture.
        shot: What the picture shows of them.
        rng: Chooses what is told, and how.
        omitted: Share of what would be told that is left out, however short the
            caption then is.
    """
    seen = [*sorted(visible_aspects(person, shot)), *_ALWAYS_SEEN]
    kept = 1 - omitted
    told = {name for name in seen if rng.random() < kept * _TOLD.get(name, 1.0)}
    caption = _compose(_gather(person, shot, told, rng), rng)
    if not omitted and len(pieces(caption)) < FEWEST_PIECES:
        told = set(seen)
        caption = _compose(_gather(person, shot, told, rng), rng)
    for name in _SPARE:
        if len(pieces(caption)) <= MOST_PIECES:
            break
        told.discard(name)
        caption = _compose(_gather(person, shot, told, rng), rng)
    return caption


def _bag_shows(bag: str, *, front: bool, hidden_hands: bool) -> bool:
    if bag == "backpack":
        return not front
    if bag in ("handbag", "suitcase"):
        return not hidden_hands
    return bag != NONE


def _carried_shows(carried: str, back: bool, *, hidden_hands: bool) -> bool:
    if carried in ("phone", "book", "cup"):
        return not back
    if carried == "shopping bag":
        return not hidden_hands
    return carried != NONE


def _pick(rng: np.random.Generator, options: Sequence):
    """Return one of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def _colour(rng: np.random.Generator, name: str) -> str:
    return _pick(rng, phrases.COLOURS[name]) if name != NONE else ""


def _gather(
    person: Identity, shot: Shot, told: set[str], rng: np.random.Generator
) -> _Facts:
    """Turn the facts to mention into phrases."""
    facts = _Facts(
        subject=_subject(person, told, rng), pronoun=phrases.PRONOUNS[person.figure]
    )
    if "motion" in told:
        gait = "walking" if abs(shot.stride) > 0.4 else "standing"
        facts.motion = _pick(rng, phrases.MOTIONS[shot.view, gait])
    if "hair" in told:
        facts.looks.append(_hair(person, "tail" in told, rng))
    if "eyewear" in told:
        facts.looks.append(_pick(rng, phrases.EYEWEAR[person.eyewear]))
    facts.worn = _worn(person, told, rng)
    if "hat" in told:
        template = _pick(rng, phrases.HATS[person.hat])
        hat = template.format(c=_colour(rng, person.hat_colour))
        (facts.looks if rng.random() < 0.4 else facts.worn).append(hat)
    for thing, table in (("bag", phrases.BAGS), ("carried", phrases.CARRIED)):
        if thing in told:
            colour = _colour(rng, getattr(person, f"{thing}_colour"))
            during, finite = _pick(rng, table[getattr(person, thing)])
            facts.held.append((during.format(c=colour), finite.format(c=colour)))
    return facts


def _subject(person: Identity, told: set[str], rng: np.random.Generator) -> str:
    """Return a phrase such as "a slim pale woman"."""
    words = [_pick(rng, phrases.OPENINGS)]
    if "build" in told:
        words.append(_pick(rng, phrases.BUILDS[person.build]))
    if "skin" in told:
        words.append(_pick(rng, phrases.SKINS[person.skin]))
    return " ".join([*words, _pick(rng, phrases.SUBJECTS[person.figure])])


def _hair(person: Identity, tail_seen: bool, rng: np.random.Generator) -> str:
    templates = phrases.HAIR[person.hair]
    if not tail_seen:
        templates = phrases.HAIR_FROM_THE_FRONT.get(person.hair, templates)
    colour = _pick(rng, phrases.HAIR_COLOURS.get(person.hair_colour, ("",)))
    return _pick(rng, templates).format(c=colour)


def _worn(person: Identity, told: set[str], rng: np.random.Generator) -> list[str]:
    """Return the clothes from top to bottom, from the shoes up, or in random order."""
    worn = []
    if "scarf" in told:
        scarf = _pick(rng, phrases.SCARVES)
        worn.append(scarf.format(c=_colour(rng, person.scarf_colour)))
    worn += _tops(person, told, rng)
    for name, table in (("lower", phrases.LOWER), ("shoes", phrases.SHOES)):
        if name in told:
            colour = _colour(rng, getattr(person, f"{name}_colour"))
            template = _pick(rng, table[getattr(person, name)])
            worn.append(template.format(c=colour))
    order = rng.random()
    if order < 0.2:
        worn.reverse()
    elif order < 0.45:
        worn = [worn[int(index)] for index in rng.permutation(len(worn))]
    return worn


def _tops(person: Identity, told: set[str], rng: np.random.Generator) -> list[str]:
    """Return the upper and outer garments, as one phrase if both are mentioned."""
    upper = _upper(person, told, rng) if "upper" in told else ""
    if "outer" not in told:
        return [upper] if upper else []
    fit = person.outer_fit if "fit" in told else "unseen"
    if person.outer == "vest":
        fit = "unseen"
    outer = _pick(rng, phrases.FITS[fit]).format(
        c=_colour(rng, person.outer_colour), k=_pick(rng, phrases.OUTER[person.outer])
    )
    if not upper:
        return [outer]
    return [_pick(rng, phrases.OVER).format(outer=outer, upper=upper)]


def _upper(person: Identity, told: set[str], rng: np.random.Generator) -> str:
    kind = _pick(rng, phrases.UPPER[person.upper])
    if person.upper in ("shirt", "dress") and "sleeves" in told:
        if person.sleeves != NONE:
            kind = f"{_pick(rng, phrases.SLEEVES[person.sleeves])} {kind}"
    pattern = person.pattern
    if pattern == "logo" and "logo" not in told:
        pattern = "plain"
    return _pick(rng, phrases.PATTERNS[pattern]).format(
        c=_colour(rng, person.upper_colour),
        d=_colour(rng, person.pattern_colour),
        k=kind,
    )


def _compose(facts: _Facts, rng: np.random.Generator) -> str:
    """Build one to three sentences from the phrases."""
    subject = facts.subject
    predicates = []
    lead = ""
    if facts.looks and rng.random() < 0.55:
        subject = f"{subject} with {_listed(facts.looks)}"
    elif facts.looks:
        predicates.append(f"has {_listed(facts.looks)}")
    if facts.worn and rng.random() < 0.22 and not subject.startswith("in "):
        lead = f"{_pick(rng, phrases.DRESSED)} {_listed(facts.worn)}, "
    else:
        predicates += _wearing(facts.worn, rng)
    if facts.motion:
        predicates.append(f"is {facts.motion}")
    for during, finite in facts.held:
        predicates.append(finite if rng.random() < 0.5 else f"is {during}")
    if not predicates:
        predicates.append("is in the picture")
    predicates = [predicates[int(index)] for index in rng.permutation(len(predicates))]
    return _sentences(lead + subject, facts.pronoun, predicates, rng)


def _wearing(worn: list[str], rng: np.random.Generator) -> list[str]:
    """Return the clothes as one predicate, or as two that may be separated."""
    cut = len(worn)
    if cut > 2 and rng.random() < 0.4:
        cut = int(rng.integers(1, cut))
    parts = [part for part in (worn[:cut], worn[cut:]) if part]
    return [f"{_pick(rng, phrases.WEARING)} {_listed(part)}" for part in parts]


def _sentences(
    subject: str, pronoun: str, predicates: list[str], rng: np.random.Generator
) -> str:
    """Distribute the predicates over sentences; later ones begin with the pronoun."""
    sentences = []
    while predicates:
        size = 1 + int(rng.random() < 0.6)
        said, predicates = predicates[:size], predicates[size:]
        text = f"{subject} {' and '.join(said)}."
        sentences.append(text[0].upper() + text[1:])
        subject = pronoun
    return re.sub(r"\b([Aa])(?= [aeiou])", r"\1n", " ".join(sentences))


def _listed(items: list[str]) -> str:
    """Return a list such as "this, that and another"."""
    *others, last = items
    return f"{', '.join(others)} and {last}" if others else last
