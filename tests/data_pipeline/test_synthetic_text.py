# SPDX-License-Identifier: Apache-2.0
"""Captions of drawn people, and the tokenizer made from their words."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from data_pipeline.synthetic import identity_attributes, phrases
from data_pipeline.synthetic.attributes import CHOICES, COLOURS, Identity
from data_pipeline.synthetic.captions import (
    MOST_PIECES,
    pieces,
    visible_aspects,
    write_caption,
)
from data_pipeline.synthetic.scene import STYLES, Shot, take_shot
from data_pipeline.synthetic.vocabulary import (
    grammar_words,
    vocabulary,
    write_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "tokenizer"
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def captions() -> list[tuple[Identity, Shot, str]]:
    """A thousand captions of the people of two seeds, in shots of all kinds."""
    described = []
    for seed in (1, 2):
        for number, person in enumerate(identity_attributes(seed, 42)):
            rng = np.random.default_rng([seed, number])
            for style in STYLES * 3:
                umbrella = person.carried == "umbrella"
                shot = take_shot(rng, style=style, umbrella=umbrella)
                for _ in range(2):
                    described.append((person, shot, write_caption(person, shot, rng)))
    return described


def test_captions_are_long_varied_and_bounded(captions):
    texts = [text for _, _, text in captions]
    words = [len(text.split()) for text in texts]
    assert 25 < np.mean(words) < 40
    assert max(len(pieces(text)) for text in texts) <= MOST_PIECES
    assert min(words) >= 9
    assert len(set(texts)) > 0.99 * len(texts)


def test_two_captions_of_a_picture_mostly_differ(captions):
    texts = [text for _, _, text in captions]
    assert all(
        first != second for first, second in zip(texts[::2], texts[1::2], strict=True)
    )


@pytest.mark.parametrize("omitted", [0.5, 1.0])
def test_captions_leave_out_what_they_are_told_to(captions, omitted):
    rng = np.random.default_rng(0)
    short = [
        write_caption(person, shot, rng, omitted=omitted)
        for person, shot, _ in captions[::4]
    ]
    words = np.mean([len(pieces(text)) for text in short])
    whole = np.mean([len(pieces(text)) for _, _, text in captions[::4]])
    assert 0.35 * whole < words < 0.75 * whole if omitted < 1 else words < 12
    assert all(text.endswith(".") for text in short)


# For each aspect the words that only captions mentioning it can contain.
TELLTALES = {
    "bag": r"backpack|rucksack|messenger|purse|suitcase|trolley|shoulder bag|handbag",
    "carried": r"phone|umbrella|book|folder|cup|shopping|carrier",
    "hat": r"\bcap\b|\bhat\b|beanie",
    "eyewear": r"glasses|spectacles",
    "scarf": r"scarf",
    "shoes": r"sneakers|trainers|shoes|boots|sandals",
    "outer": r"jacket|coat|overcoat|vest",
    "fit": r"unzipped|zipped|closed|worn open|an open \w+( \w+)? (jacket|coat)",
    "upper": r"shirt|\btee\b|sweater|pullover|jumper|hood|\btop\b|dress\b|frock",
    "logo": r"logo|print",
    "tail": r"ponytail|tied back",
}


@pytest.mark.parametrize("aspect", TELLTALES)
def test_captions_tell_only_what_the_view_shows(captions, aspect):
    told = {True: 0, False: 0}
    for person, shot, text in captions:
        found = re.search(TELLTALES[aspect], text.lower())
        seen = aspect in visible_aspects(person, shot)
        told[seen] += found is not None
        assert seen or not found, (aspect, shot.view, text)
    assert told[True] > 5


def test_every_word_is_one_token(tokenizer_folder, captions):
    tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder))
    words = list(grammar_words())
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    assert [len(each) for each in ids] == [1] * len(words)
    said = {word for _, _, text in captions for word in pieces(text)}
    assert said <= set(words)
    for _, _, text in captions[::20]:
        assert len(tokenizer(text)["input_ids"]) == len(pieces(text)) + 2


def test_vocabulary_has_the_shape_of_clip(tokenizer_folder):
    tokenizer = CLIPTokenizer(
        str(tokenizer_folder / "vocab.json"), str(tokenizer_folder / "merges.txt")
    )
    size = len(vocabulary())
    assert 1000 <= size <= 2000
    assert tokenizer.vocab_size == size == len(set(vocabulary()))
    specials = ["<|mask|>", "<|startoftext|>", "<|endoftext|>"]
    table = json.loads((tokenizer_folder / "vocab.json").read_text(encoding="utf-8"))
    assert [table[word] for word in ["!", *specials]] == [0, *range(size - 3, size)]
    ids = tokenizer("a red hat")["input_ids"]
    assert (ids[0], ids[-1]) == (size - 2, size - 1)


@pytest.mark.parametrize(
    "text", ["xylophones", "naïve café", "日本語", "a zebra-print kimono, size 42!"]
)
def test_any_other_text_still_tokenises(tokenizer_folder, text):
    tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids
    assert max(ids) < len(vocabulary()) - 3
    assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_every_template_is_filled_and_used(captions):
    texts = " ".join(text for _, _, text in captions)
    assert "{" not in texts
    assert "  " not in texts
    assert not re.search(r"\b[Aa] [aeiou]", texts)
    unused = set(grammar_words()) - set(pieces(texts))
    assert len(unused) < 0.05 * len(grammar_words()), unused


def test_phrases_have_colour_words_for_every_colour():
    assert set(phrases.COLOURS) == set(COLOURS)
    assert set(phrases.HAIR) == set(CHOICES["hair"])
