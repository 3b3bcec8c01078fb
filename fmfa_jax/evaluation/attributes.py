# SPDX-License-Identifier: Apache-2.0
"""Which queries speak of what: groups of queries to be measured apart."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
from jaxtyping import Bool

from data_pipeline.records import Split
from data_pipeline.synthetic import Identity

Groups = dict[tuple[str, str], Bool[np.ndarray, "q"]]
"""(Attribute, value) -> whether each query is of the group."""

_COLOURS = ("black", "white", "red", "orange", "yellow", "green", "blue", "purple")
_COLOURS += ("pink", "brown", "beige")

# Attribute -> value -> whole words or phrases of a caption, in lower case.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "gender": {
        "man": ("man", "boy", "male", "guy", "gentleman", "men"),
        "woman": ("woman", "girl", "female", "lady", "women"),
    },
    "colour": {
        **{colour: (colour,) for colour in _COLOURS},
        "grey": ("grey", "gray"),
        "dark": ("dark", "navy", "maroon", "burgundy"),
        "light": ("light", "pale", "bright"),
    },
    "pattern": {
        "striped": ("striped", "stripe", "stripes"),
        "checked": ("checked", "checkered", "plaid"),
        "printed": ("print", "printed", "logo", "pattern", "patterned", "floral"),
    },
    "upper": {
        "t-shirt": ("t-shirt", "tshirt", "t shirt", "tee"),
        "shirt": ("shirt", "blouse", "polo"),
        "sweater": ("sweater", "sweatshirt", "pullover", "jumper", "hoodie"),
        "jacket": ("jacket", "coat", "blazer", "vest", "windbreaker"),
        "dress": ("dress", "gown", "frock"),
    },
    "lower": {
        "trousers": ("trousers", "pants", "slacks", "leggings"),
        "jeans": ("jeans", "denim"),
        "shorts": ("shorts",),
        "skirt": ("skirt",),
    },
    "shoes": {
        "shoes": ("shoes", "shoe"),
        "sneakers": ("sneakers", "trainers", "tennis shoes", "running shoes"),
        "boots": ("boots",),
        "sandals": ("sandals", "slippers", "flip flops", "flip-flops"),
        "heels": ("heels", "high heels"),
    },
    "bag": {
        "backpack": ("backpack", "rucksack", "back pack", "knapsack", "schoolbag"),
        "handbag": ("handbag", "purse", "hand bag", "tote"),
        "bag": ("bag", "shoulder bag", "messenger bag", "satchel"),
        "suitcase": ("suitcase", "luggage", "trolley"),
    },
    "hair": {
        "long": ("long hair", "long black hair", "long brown hair", "long dark hair"),
        "short": ("short hair", "short black hair", "short brown hair"),
        "tied": ("ponytail", "pony tail", "bun"),
        "bald": ("bald",),
    },
    "head": {
        "hat": ("hat", "cap", "beanie", "helmet"),
        "glasses": ("glasses", "sunglasses", "eyeglasses", "spectacles"),
        "scarf": ("scarf",),
    },
    "held": {
        "phone": ("phone", "cellphone", "mobile"),
        "umbrella": ("umbrella",),
        "bicycle": ("bicycle", "bike"),
        "book": ("book", "papers", "folder"),
    },
}


def by_words(
    captions: Sequence[str],
    table: Mapping[str, Mapping[str, Sequence[str]]] = WORDS,
) -> Groups:
    """Group captions by the words that they contain.

    A caption may be in several groups of an attribute, or in none. Words that only
    follow "no" or "not" count as well: it is the sentence that is grouped, and not the
    person.
    """
    texts = [" ".join(caption.lower().split()) for caption in captions]
    return {
        (attribute, value): _contain(texts, words)
        for attribute, values in table.items()
        for value, words in values.items()
    }


def by_person(split: Split, people: Mapping[int, Identity]) -> Groups:
    """Group the captions of drawn people by the attributes they were drawn from.

    Args:
        split: Its captions are grouped.
        people: Who the person of each id is.
    """
    asked = [people[int(person)] for person in split.pair_persons]
    groups: Groups = {}
    for field in fields(Identity):
        values = np.array([getattr(person, field.name) for person in asked])
        for value in np.unique(values):
            groups[field.name.replace("_", " "), str(value)] = values == value
    return groups


def _contain(texts: Sequence[str], words: Sequence[str]) -> Bool[np.ndarray, "q"]:
    anyone = "|".join(re.escape(word) for word in words)
    pattern = re.compile(rf"(?<![\w-])(?:{anyone})(?![\w-])")
    return np.array([pattern.search(text) is not None for text in texts], bool)
