# SPDX-License-Identifier: Apache-2.0
"""Which words of a sentence matched which regions of a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int32

from data_pipeline.tokenizer import Tokenizer, clean


@dataclass(frozen=True)
class Word:
    """A word, and the ids that it became: `first` to `last - 1` of the row."""

    text: str
    first: int
    last: int


@dataclass(frozen=True)
class WordMap:
    """Cosines of a word with every patch of a picture."""

    word: str
    similarity: Float32[np.ndarray, "rows columns"]


def split_words(
    sentence: str, tokenizer: Tokenizer, context_length: int
) -> tuple[Int32[np.ndarray, "l"], tuple[Word, ...]]:
    """Encode a sentence, and tell which ids belong to which word.

    Words end at white space, where no token runs on; what is cut off is left out.

    Returns:
        The padded row of ids, and the words in it.
    """
    words = clean(sentence).split()
    row = tokenizer.encode([" ".join(words)], context_length)[0]
    alone = tokenizer.encode(words, context_length)
    spans: list[Word] = []
    first = 1
    for word, ids in zip(words, alone, strict=True):
        # A word that spells the end token out is one id too.
        last = first + max(1, int(np.argmax(ids)) - 1)
        if last >= context_length:
            break
        spans.append(Word(word, first, last))
        first = last
    return row, tuple(spans)


def word_maps(
    words: Sequence[Word],
    text_tokens: Float[np.ndarray, "l d"],
    image_tokens: Float[np.ndarray, "n d"],
    grid: tuple[int, int],
) -> tuple[WordMap, ...]:
    """Compare each word with each patch.

    A word of several tokens counts with the mean of its unit tokens.

    Args:
        words: from `split_words`.
        text_tokens: of the sentence.
        image_tokens: of the picture, its class token first.
        grid: rows and columns of patches.
    """
    text, patches = _unit(text_tokens), _unit(image_tokens[1:])
    maps = []
    for word in words:
        mean = _unit(text[word.first : word.last].mean(0, keepdims=True))[0]
        maps.append(WordMap(word.text, (patches @ mean).reshape(grid)))
    return tuple(maps)


def _unit(rows: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    rows = np.asarray(rows, np.float32)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.maximum(length, 1e-12)
