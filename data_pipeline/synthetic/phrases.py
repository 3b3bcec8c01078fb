# SPDX-License-Identifier: Apache-2.0
"""Every word that a caption can contain: only synonyms and templates.

In a template `{c}` is a colour, `{d}` the colour of a pattern, `{k}` a kind of thing.
The tokenizer's vocabulary is made from these tables (`vocabulary.py`).
"""

from collections.abc import Iterator

SUBJECTS = {
    "man": ("man", "man", "guy", "gentleman", "male", "person", "pedestrian"),
    "woman": ("woman", "woman", "lady", "female", "girl", "person", "pedestrian"),
}
PRONOUNS = {"man": "he", "woman": "she"}
BUILDS = {
    "slim": ("slim", "thin", "slender", "skinny"),
    "average": ("average sized", "medium built"),
    "heavy": ("heavy", "stout", "heavyset", "large"),
}
SKINS = {
    "light": ("pale", "light skinned"),
    "tan": ("tanned", "brown skinned"),
    "dark": ("dark skinned",),
}
COLOURS = {
    "black": ("black",),
    "white": ("white",),
    "grey": ("grey", "gray"),
    "red": ("red", "bright red"),
    "maroon": ("maroon", "dark red", "burgundy"),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "dark green": ("dark green", "deep green"),
    "light blue": ("light blue", "sky blue", "pale blue"),
    "blue": ("blue", "bright blue"),
    "navy": ("navy", "navy blue", "dark blue"),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "brown": ("brown",),
    "beige": ("beige", "cream", "sand colored"),
}
HAIR_COLOURS = {
    "black": ("black", "dark"),
    "brown": ("brown",),
    "blond": ("blond", "blonde", "fair"),
    "red": ("red", "ginger"),
    "grey": ("grey", "gray", "silver"),
}
HAIR = {
    "short": ("short {c} hair", "{c} hair cut short"),
    "bob": ("chin length {c} hair", "a {c} bob"),
    "long": ("long {c} hair", "{c} hair that falls over the shoulders"),
    "ponytail": ("a {c} ponytail", "{c} hair in a ponytail", "{c} hair tied back"),
    "bun": ("a {c} bun", "{c} hair in a bun", "{c} hair tied up in a knot"),
    "curly": ("curly {c} hair", "big {c} curls"),
    "bald": ("a bald head", "a shaved head", "no hair"),
}
HAIR_FROM_THE_FRONT = {"ponytail": ("{c} hair", "neat {c} hair")}
UPPER = {
    "t-shirt": ("t-shirt", "tee", "short sleeved t-shirt"),
    "shirt": ("shirt", "button up shirt", "collared shirt"),
    "sweater": ("sweater", "pullover", "jumper"),
    "hoodie": ("hoodie", "hooded sweatshirt", "hooded top"),
    "tank top": ("tank top", "sleeveless top"),
    "dress": ("dress", "knee length dress", "frock"),
}
SLEEVES = {"long": ("long sleeved",), "short": ("short sleeved",)}
PATTERNS = {
    "plain": ("a {c} {k}", "a {c} {k}", "a plain {c} {k}", "a {k} in {c}"),
    "striped": (
        "a {c} and {d} striped {k}",
        "a {c} {k} with {d} stripes",
        "a {k} with {c} and {d} stripes",
    ),
    "checked": (
        "a {c} and {d} checked {k}",
        "a {c} and {d} plaid {k}",
        "a {c} checkered {k} with {d} lines",
    ),
    "dotted": (
        "a {c} {k} with {d} dots",
        "a {c} {k} with {d} spots",
        "a {c} and {d} polka dot {k}",
    ),
    "two-tone": (
        "a {k} that is {c} on top and {d} below",
        "a {c} {k} with a {d} lower half",
        "a two toned {c} and {d} {k}",
    ),
    "logo": (
        "a {c} {k} with a {d} logo",
        "a {c} {k} with a round {d} print on the chest",
    ),
}
OUTER = {
    "jacket": ("jacket", "bomber jacket"),
    "coat": ("coat", "long coat", "overcoat"),
    "vest": ("vest", "padded vest", "sleeveless jacket"),
}
FITS = {
    "open": ("an open {c} {k}", "an unzipped {c} {k}", "a {c} {k} worn open"),
    "closed": ("a closed {c} {k}", "a zipped up {c} {k}", "a {c} {k}"),
    "unseen": ("a {c} {k}", "a {c} {k}", "a {k} in {c}"),
}
OVER = ("{outer} over {upper}", "{upper} under {outer}", "{outer} and {upper}")
LOWER = {
    "trousers": ("{c} trousers", "{c} pants", "a pair of {c} trousers"),
    "jeans": ("{c} jeans", "{c} denim jeans", "a pair of {c} jeans"),
    "shorts": ("{c} shorts", "a pair of {c} shorts", "{c} short pants"),
    "skirt": ("a {c} skirt", "a {c} knee length skirt"),
    "long skirt": ("a long {c} skirt", "an ankle length {c} skirt"),
    "leggings": ("{c} leggings", "tight {c} leggings", "tight {c} pants"),
}
SHOES = {
    "sneakers": ("{c} sneakers", "{c} trainers", "{c} running shoes"),
    "boots": ("{c} boots", "a pair of {c} boots", "high {c} boots"),
    "sandals": ("{c} sandals", "open {c} sandals"),
    "shoes": ("{c} shoes", "{c} leather shoes", "a pair of {c} shoes"),
}
HATS = {
    "cap": ("a {c} cap", "a {c} baseball cap"),
    "beanie": ("a {c} beanie", "a {c} knitted hat", "a {c} wool hat"),
    "sun hat": ("a {c} sun hat", "a wide brimmed {c} hat", "a broad {c} hat"),
}
EYEWEAR = {
    "glasses": ("glasses", "spectacles", "a pair of glasses"),
    "sunglasses": ("sunglasses", "dark glasses", "a pair of sunglasses"),
}
SCARVES = ("a {c} scarf", "a {c} scarf around the neck")
# Each held thing: (a phrase that follows "is", a phrase that follows the pronoun).
BAGS = {
    "backpack": (
        ("carrying a {c} backpack", "carries a {c} backpack"),
        ("carrying a {c} rucksack on the back", "has a {c} rucksack on the back"),
    ),
    "shoulder bag": (
        ("carrying a {c} shoulder bag", "carries a {c} shoulder bag"),
        ("wearing a {c} messenger bag", "has a {c} messenger bag across the body"),
    ),
    "handbag": (
        ("holding a {c} handbag", "holds a {c} handbag"),
        ("carrying a {c} purse in one hand", "has a {c} purse in one hand"),
    ),
    "suitcase": (
        ("pulling a {c} suitcase", "pulls a {c} suitcase"),
        ("wheeling a {c} trolley case", "has a {c} trolley case on wheels"),
    ),
}
CARRIED = {
    "phone": (
        ("looking at a phone", "looks at a phone"),
        ("holding up a mobile phone", "holds up a mobile phone"),
    ),
    "umbrella": (
        ("holding an open {c} umbrella", "holds an open {c} umbrella"),
        ("walking under a {c} umbrella", "is under a {c} umbrella"),
    ),
    "book": (
        ("holding a {c} book", "holds a {c} book"),
        ("carrying a {c} folder", "has a {c} folder in one hand"),
    ),
    "cup": (
        ("holding a cup of coffee", "holds a cup of coffee"),
        ("carrying a paper cup", "has a paper cup in one hand"),
    ),
    "shopping bag": (
        ("carrying a {c} shopping bag", "carries a {c} shopping bag"),
        ("holding a {c} carrier bag", "holds a {c} carrier bag"),
    ),
}
MOTIONS = {
    ("front", "walking"): ("walking towards the camera", "walking towards us"),
    ("front", "standing"): ("facing the camera", "standing and facing the camera"),
    ("back", "walking"): ("walking away from the camera", "walking away"),
    ("back", "standing"): ("seen from behind", "facing away from the camera"),
    ("side", "walking"): (
        "walking past the camera",
        "seen from the side in mid stride",
    ),
    ("side", "standing"): ("seen from the side", "standing in profile"),
}
WEARING = ("is wearing", "wears", "is dressed in", "has on")
DRESSED = ("dressed in", "wearing", "clothed in")
OPENINGS = ("a", "a", "a", "the", "this", "in the picture a")
# What the grammar itself adds.
JOINTS = ("and", "a", "an", "with", "has", "is", "is in the picture", ",", ".", "-")


def all_texts() -> Iterator[str]:
    """Yield every string of this module's tables, including slots."""
    for name, table in globals().items():
        if name.isupper():
            yield from _strings(table)


def _strings(table: object) -> Iterator[str]:
    """Yield the strings in nested tuples and dictionary values."""
    if isinstance(table, str):
        yield table
    elif isinstance(table, dict):
        for value in table.values():
            yield from _strings(value)
    elif isinstance(table, tuple):
        for value in table:
            yield from _strings(value)
