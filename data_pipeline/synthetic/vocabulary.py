# SPDX-License-Identifier: Apache-2.0
"""A small tokenizer in CLIP's format, made only from the words of the grammar.

The ids follow CLIP: 256 bytes, the same 256 bytes at the end of a word, one id per
merge, then the mask, start and end tokens. Every word of `phrases` is a single token;
any other text falls back to shorter pieces and finally to bytes.
"""

import json
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

from data_pipeline.byte_pairs import END, MASK, START, WORD_END, Merge, byte_entries
from data_pipeline.synthetic.captions import pieces
from data_pipeline.synthetic.phrases import all_texts


@cache
def grammar_words() -> tuple[str, ...]:
    """Return every word and mark that a caption can contain, sorted."""
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
    """Return byte-pair merges, most frequent pair first, until each word is one token.

    Applying them to a word in this order repeats the steps that made them, so that each
    word of the grammar ends up as one token, whatever the other words need.
    """
    split = [(*word[:-1], word[-1] + WORD_END) for word in grammar_words()]
    found: list[Merge] = []
    while any(len(word) > 1 for word in split):
        counts = Counter(pair for word in split for pair in pairwise(word))
        # The pair itself breaks ties, so that the result does not depend on order.
        best = max(counts, key=lambda pair: (counts[pair], pair))
        found.append(best)
        split = [_merged(word, best) for word in split]
    return tuple(found)


@cache
def vocabulary() -> tuple[str, ...]:
    """Return all tokens; a token's id is its place."""
    whole = ["".join(merge) for merge in merges()]
    return (*byte_entries(), *whole, MASK, START, END)


def write_tokenizer(folder: Path) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json into a new folder."""
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


def _merged(word: tuple[str, ...], pair: Merge) -> tuple[str, ...]:
    """Return a split word with every occurrence of a pair joined, from the left."""
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
