# SPDX-License-Identifier: Apache-2.0
"""A small tokenizer in CLIP's own format, made from the words of the grammar alone.

Ids, as in CLIP: 256 bytes, the same 256 bytes at the end of a word, one id for each
merge, then the mask, the start and the end token. Every word of `phrases` becomes one
token; any other text falls back to shorter pieces, in the end to bytes.
"""

import json
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

from data_pipeline.synthetic.captions import pieces
from data_pipeline.synthetic.phrases import all_texts

MASK, START, END = "<|mask|>", "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
Merge = tuple[str, str]


@cache
def grammar_words() -> tuple[str, ...]:
    """Every word and mark that a caption can hold, sorted."""
    texts = (text.replace("{", " {").replace("}", "} ") for text in all_texts())
    words = {
        word
        for text in texts
        for part in text.split()
        if not part.startswith("{")
        for word in pieces(part)
    }
    return tuple(sorted(words))


@cache
def merges() -> tuple[Merge, ...]:
    """Byte-pair merges, most frequent pair first, until each word is one token.

    Applying them in this order to a word repeats the steps that made them, so each
    word of the grammar ends as one token whatever the other words need.
    """
    split = [(*word[:-1], word[-1] + _WORD_END) for word in grammar_words()]
    found: list[Merge] = []
    while any(len(word) > 1 for word in split):
        counts = Counter(pair for word in split for pair in pairwise(word))
        # The pair itself breaks ties, so the result does not depend on order.
        best = max(counts, key=lambda pair: (counts[pair], pair))
        found.append(best)
        split = [_merged(word, best) for word in split]
    return tuple(found)


@cache
def vocabulary() -> tuple[str, ...]:
    """All tokens; a token's id is its place."""
    letters = _byte_letters()
    ends = [letter + _WORD_END for letter in letters]
    whole = ["".join(merge) for merge in merges()]
    return (*letters, *ends, *whole, MASK, START, END)


def write_tokenizer(folder: Path) -> None:
    """Writes vocab.json, merges.txt and tokenizer_config.json into a new folder."""
    folder.mkdir(parents=True)
    ids = {token: place for place, token in enumerate(vocabulary())}
    table = json.dumps(ids, ensure_ascii=False)
    (folder / "vocab.json").write_text(table, encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges())]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "model_max_length": 64,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def _byte_letters() -> list[str]:
    """One printable letter for each byte, in the order of CLIP's vocabulary.

    Printable Latin-1 characters stand for themselves and come first, from "!"; the
    other bytes are shown as the letters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)
    return [chr(code) for code in [*printable, *range(0x100, 0x100 + others)]]


def _merged(word: tuple[str, ...], pair: Merge) -> tuple[str, ...]:
    """A split word with every occurrence of a pair joined, from the left."""
    joined: list[str] = []
    place = 0
    while place < len(word):
        if word[place : place + 2] == pair:
            joined.append("".join(pair))
            place += 2
        else:
            joined.append(word[place])
            place += 1
    return tuple(joined)
