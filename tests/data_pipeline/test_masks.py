# SPDX-License-Identifier: Apache-2.0
"""Where drawn things are, and the words that name them."""

from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.synthetic import captions, masks, photo, phrases, population, scene
from data_pipeline.synthetic.attributes import NONE, Identity

SIZE = (96, 48)
PERSON = Identity(
    **{"figure": "woman", "build": "average", "skin": "light", "hair": "long"},
    **{"hair_colour": "blond", "upper": "t-shirt", "upper_colour": "red"},
    **{"pattern": "striped", "pattern_colour": "white", "sleeves": "short"},
    **{"outer": NONE, "outer_fit": NONE, "outer_colour": NONE, "lower": "trousers"},
    **{"lower_colour": "blue", "shoes": "boots", "shoes_colour": "brown"},
    **{"bag": "shoulder bag", "bag_colour": "yellow", "hat": "cap"},
    **{"hat_colour": "black", "eyewear": "glasses", "carried": "cup"},
    **{"carried_colour": NONE, "scarf_colour": NONE},
)
SHOT = scene.Shot("street", "front", 1, 0.5, 0.9, 0.05, 0.5, "nothing")


def draw(look):
    rng = np.random.default_rng(5)
    return photo.photograph(look, SHOT, rng, image_size=SIZE, posed_as=PERSON)


@pytest.fixture(scope="module")
def found():
    return {t: masks.mask_of(t, PERSON, draw) for t in (*masks.NOUNS, masks.PATTERN)}


@pytest.mark.parametrize(
    "thing, colour", [("lower", "green"), ("bag", "pink"), ("shoes", "white")]
)
def test_a_mask_covers_what_another_colour_changes(found, thing, colour):
    other = draw(replace(PERSON, **{f"{thing}_colour": colour}))
    apart = np.abs(np.asarray(other, int) - np.asarray(draw(PERSON))).max(axis=-1)
    assert found[thing].any() and (apart > 0)[found[thing]].mean() > 0.99
    assert found[thing][apart > 40].all()  # all but faint edges


def test_what_is_not_worn_is_nowhere_and_what_has_no_colour_is_found(found):
    assert not found["scarf"].any() and not found["outer"].any()
    head = slice(0, SIZE[0] // 4)
    assert found["eyewear"].any() and not np.delete(found["eyewear"], head, 0).any()
    assert found["carried"].any() and not (found["carried"] & found["lower"]).any()


def test_stripes_are_part_of_their_garment(found):
    stripes, shirt = found[masks.PATTERN], found["upper"]
    assert stripes.any() and not (stripes & ~shirt).any()
    assert 0.2 < stripes.sum() / shirt.sum() < 0.9
    assert (shirt.nonzero()[0].mean()) < found["lower"].nonzero()[0].mean()


@pytest.mark.parametrize(
    "caption, wanted",
    [
        (
            "A woman wears grey trousers and is carrying an orange shoulder bag.",
            "",  # not hers
        ),
        (
            "She has a red t-shirt with white stripes, bright blue pants and high "
            "brown boots.",
            "red:upper shirt:upper white:pattern bright:lower blue:lower pants:lower "
            "brown:shoes boots:shoes",
        ),
        (
            "Carrying a yellow shoulder bag and in a black baseball cap, a pair of "
            "glasses and holding a cup of coffee.",
            "yellow:bag bag:bag black:hat cap:hat glasses:eyewear cup:carried",
        ),
    ],
)
def test_words_that_name_a_thing_or_its_colour(caption, wanted):
    words = captions.pieces(caption)
    named = masks.named(PERSON, words)
    assert " ".join(f"{words[n.place]}:{n.thing}" for n in named) == wanted
    colours = set(" ".join(sum(phrases.COLOURS.values(), ())).split())
    assert all((words[n.place] in colours) == (n.kind == "colour") for n in named)


def test_every_noun_of_every_caption_is_found():
    """Of what captions say of things nothing is missed, and no word is named twice."""
    options = population.Options(test_identities=0, identities=60, style="both")
    people = population.identity_attributes(options.seed, options.people)
    nouns = set().union(*masks.NOUNS.values())
    rng = np.random.default_rng(1)
    for number, person in enumerate(people):
        shot = next(population.shots_of(person, number, options))
        words = captions.pieces(captions.write_caption(person, shot, rng))
        places = [each.place for each in masks.named(person, words)]
        assert len(set(places)) == len(places)
        missed = [w for at, w in enumerate(words) if w in nouns and at not in places]
        assert not missed, " ".join(words)
