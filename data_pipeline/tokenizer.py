# SPDX-License-Identifier: Apache-2.0
"""From captions to CLIP's byte-pair ids, with the last merge's id used as a mask."""

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from data_pipeline.byte_pairs import (
    END,
    START,
    TABLES,
    BytePairs,
    clip_byte_pairs,
    folder_byte_pairs,
    table_files,
)
from data_pipeline.copies import near

LONGEST_WORD = 4096
"""Letters that are kept of a word, since byte pairs cost the square of its length. More
would only matter beyond the largest number of text positions."""

_MOST_MARKS = 30
_LITERAL = re.compile("|".join(map(re.escape, (START, END))))


@runtime_checkable
class Tokenizer(Protocol):
    """What the loader needs: the ids of captions, and the three special ids.

    Attributes:
        vocab_size: V.
        mask_id: V - 3, which no caption contains.
        start_id: V - 2, the first id of every row.
        end_id: V - 1, the largest: a text's feature is read at its position.
    """

    vocab_size: int
    mask_id: int
    start_id: int
    end_id: int

    def encode(
        self, captions: Sequence[str], context_length: int
    ) -> Int32[np.ndarray, "p l"]:
        """Return one row of ids per caption: start, the text, end, then zeros.

        Of a caption that is too long, the first `context_length` ids are kept and the
        last of them is replaced by the end.
        """
        ...


@dataclass(frozen=True)
class Word:
    """A word or mark of an encoded caption: the ids start, ..., stop - 1 of its row.

    Attributes:
        text: The word in lower case, as the tokenizer sees it.
        start: Position of its first id.
        stop: Position after its last id.
    """

    text: str
    start: int
    stop: int


@runtime_checkable
class WordTokenizer(Tokenizer, Protocol):
    """A tokenizer that also says what it is, and which ids make up which word."""

    def fingerprint(self) -> str:
        """Return the hex SHA-256 of what it does; where its files lie does not count.

        It takes up to a second: every entry is encoded.
        """
        ...

    def words(self, ids: Int32[np.ndarray, "l"]) -> tuple[Word, ...]:
        """Return the words of one row of `encode`, from left to right.

        Start, end, padding and masks belong to no word. A word that was cut off at the
        end of the row is included with its remaining ids.
        """
        ...


def open_tokenizer(name: str) -> WordTokenizer:
    """Open a tokenizer: "clip", or a folder with a Hugging Face CLIP tokenizer.

    The folder, of which there may be a URL, contains vocab.json and merges.txt, or
    tokenizer.json alone; see `byte_pairs.folder_byte_pairs`.

    Raises:
        FileNotFoundError: If `name` is neither "clip" nor a folder with these files.
        ValueError: If the folder's vocabulary does not have CLIP's form.
    """
    if name == "clip":
        return _BytePairTokenizer(clip_byte_pairs())
    folder = Path(near(name, what="tokenizer"))
    if not table_files(folder):
        missing = [file for file in TABLES[0] if not (folder / file).is_file()]
        raise FileNotFoundError(
            f"tokenizer {name!r}: wanted 'clip' or a folder with vocab.json and "
            f"merges.txt, or with tokenizer.json; {' and '.join(missing)} not found "
            "there"
        )
    return _BytePairTokenizer(folder_byte_pairs(folder))


def cut_captions(
    tokenizer: Tokenizer, captions: Sequence[str], context_length: int
) -> dict[int, int]:
    """Return how long the captions are that do not fit, by their index.

    Args:
        tokenizer: Makes the ids.
        captions: The captions.
        context_length: Number of text positions. A caption's length is the number that
            it would need, start and end included.
    """
    lengths: dict[int, int] = {}
    left, room = list(range(len(captions))), context_length
    while left:
        room = 2 * room if lengths else room + 1
        rows = tokenizer.encode([captions[i] for i in left], room)
        # Look for the end, which has the largest id: id 0 is padding, but also "!".
        found = dict(zip(left, (rows.argmax(axis=1) + 1).tolist(), strict=True))
        lengths |= {i: n for i, n in found.items() if n > context_length}
        left = [i for i, n in found.items() if n == room]
    return lengths


def clean(caption: str) -> str:
    """Return a caption as CLIP sees it.

    Broken encodings are repaired (ftfy), HTML entities resolved twice, white space
    collapsed and letters lowered. What is longer than any word is cut.
    """
    if len(caption) > LONGEST_WORD:
        caption = _cut_words(caption, 16 * LONGEST_WORD)  # entities shrink
        caption = _cut_marks(caption)
    # Printable ASCII without entities needs no repair, which takes 3/4 of the time.
    if not caption.isascii() or not caption.isprintable() or "&" in caption:
        # Imported here: a bare GPU machine, which opens weights alone, may lack it.
        import ftfy

        caption = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return _cut_words(caption, LONGEST_WORD).lower()


def _cut_marks(text: str) -> str:
    """Return a text with at most 30 marks on a letter, as Unicode's annex 15 advises.

    To bring them into their order costs the square of their number.
    """
    if text.isascii():
        return text
    kept, marks = [], 0
    for letter in text:
        marks = marks + 1 if unicodedata.combining(letter) else 0
        if marks <= _MOST_MARKS:
            kept.append(letter)
    return "".join(kept)


def _cut_words(text: str, length: int) -> str:
    """Return the words of a text, each no longer than this, with a space between."""
    words = text.split()
    if len(text) > length:
        words = [word[:length] for word in words]
    return " ".join(words)


@dataclass(frozen=True)
class _BytePairTokenizer:
    byte_pairs: BytePairs

    @property
    def vocab_size(self) -> int:
        """See `Tokenizer`."""
        return self.byte_pairs.size

    def fingerprint(self) -> str:
        """See `WordTokenizer`."""
        return self.byte_pairs.fingerprint()

    @property
    def mask_id(self) -> int:
        """See `Tokenizer`."""
        return self.vocab_size - 3

    @property
    def start_id(self) -> int:
        """See `Tokenizer`."""
        return self.vocab_size - 2

    @property
    def end_id(self) -> int:
        """See `Tokenizer`."""
        return self.vocab_size - 1

    def encode(
        self, captions: Sequence[str], context_length: int
    ) -> Int32[np.ndarray, "p l"]:
        """See `Tokenizer.encode`."""
        if context_length < 2:
            raise ValueError(
                f"context length {context_length}: wanted at least 2, start and end"
            )
        rows = np.zeros((len(captions), context_length), np.int32)
        texts = [clean(caption) for caption in captions]
        encoded = self.byte_pairs.encode(texts)
        for row, text, ids in zip(rows, texts, encoded, strict=True):
            if _LITERAL.search(text):
                ids = self._encode_literal(text)
            ids = [self.start_id, *ids, self.end_id][:context_length]
            row[: len(ids)] = ids
            row[len(ids) - 1] = self.end_id
        return rows

    def words(self, ids: Int32[np.ndarray, "l"]) -> tuple[Word, ...]:
        """See `WordTokenizer.words`."""
        row = ids.tolist()
        length = row.index(self.end_id) if self.end_id in row else len(row)
        found, start = [], 0
        for place in range(length):
            if row[place] >= self.mask_id:
                start = place + 1
            elif place + 1 == length or self._ends_word(row[place : place + 2]):
                text = self.byte_pairs.decode(row[start : place + 1]).rstrip(" ")
                found.append(Word(text, start, place + 1))
                start = place + 1
        return tuple(found)

    def _ends_word(self, ids: list[int]) -> bool:
        """Return whether the first of two ids is the last one of its word."""
        return ids[1] >= self.mask_id or self.byte_pairs.decode(ids[:1]).endswith(" ")

    def _encode_literal(self, text: str) -> list[int]:
        """Encode a text that spells out special tokens, as the official code does."""
        special = {START: [self.start_id], END: [self.end_id]}
        pieces = list(_split_literal(text))
        encoded = zip(pieces, self.byte_pairs.encode(pieces), strict=True)
        return [i for piece, ids in encoded for i in special.get(piece, ids)]


def _split_literal(text: str) -> Iterator[str]:
    """Split at special tokens; one right after a punctuation mark is ordinary text."""
    begin = 0
    for found in _LITERAL.finditer(text):
        before, word = text[begin : found.start()], found.group()
        if not before or _ends_token(before[-1]):
            yield from (before, word)
            begin = found.end()
        else:
            # Between marks and letters every token ends anyway: cut there, so that no
            # encoder can mistake the pieces for the special token.
            yield from (before + "<|", word[2:-2])
            begin = found.end() - 2
    yield text[begin:]


def _ends_token(character: str) -> bool:
    """Return False for marks, with which a following `<|` would form one token."""
    return character.isspace() or unicodedata.category(character)[0] in "LN"
