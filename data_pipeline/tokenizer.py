# SPDX-License-Identifier: Apache-2.0
"""Captions to CLIP's byte-pair ids, with the id of a mask taken from the last merge."""

import html
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import ftfy
import numpy as np
from jaxtyping import Int32

START, END, MASK = "<|startoftext|>", "<|endoftext|>", "<|mask|>"

_CLIP_VOCABULARY = 49408
_JEKYLL = (43893, 865)  # "jeky" + "ll</w>": what the last merge, 49405, is made of
_LITERAL = re.compile("|".join(map(re.escape, (START, END))))
# What byte pairs are merged within: a short ending, letters, one digit, or marks.
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


@runtime_checkable
class Tokenizer(Protocol):
    """What the loader needs: ids of captions, and the three ids with a meaning.

    Attributes:
        vocab_size: V.
        mask_id: V - 3; no caption yields it.
        start_id: V - 2; the first id of every row.
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

        Where a caption is too long, the first `context_length` ids are kept and the
        last of them becomes the end.
        """
        ...


@dataclass(frozen=True)
class Word:
    """One word or mark of an encoded caption: the ids start, ..., stop - 1 of its row.

    Attributes:
        text: in lower case, as the tokenizer sees it.
        start: position of its first id.
        stop: position after its last id.
    """

    text: str
    start: int
    stop: int


@runtime_checkable
class WordTokenizer(Tokenizer, Protocol):
    """A tokenizer that also tells which of a row's ids make up which word."""

    def words(self, ids: Int32[np.ndarray, "l"]) -> tuple[Word, ...]:
        """Return the words of one row of `encode`, from left to right.

        Start, end, padding and masks belong to no word. A word that was cut off at the
        end of the row is there with the ids that it has left.
        """
        ...


def open_tokenizer(name: str) -> WordTokenizer:
    """Open a tokenizer: "clip", or a folder with a Hugging Face CLIP tokenizer.

    The folder holds vocab.json and merges.txt; the vocabulary may be of any size, its
    last two entries are `<|startoftext|>` and `<|endoftext|>`. The entry before them is
    `<|mask|>`, or the result of a merge, which then gives its place to the mask.

    Raises:
        FileNotFoundError: neither "clip" nor a folder with the two files.
        ValueError: the vocabulary does not have that shape.
    """
    if name == "clip":
        return _BytePairTokenizer(_CLIP_VOCABULARY, _clip_encoder(), _clip_decoder())
    missing = [f for f in ("vocab.json", "merges.txt") if not Path(name, f).is_file()]
    if missing:
        raise FileNotFoundError(
            f"tokenizer {name!r}: wanted 'clip' or a folder with vocab.json and "
            f"merges.txt; {' and '.join(missing)} not found there"
        )
    vocabulary, merges = _read_folder(Path(name))
    return _BytePairTokenizer(
        len(vocabulary),
        _folder_encoder(vocabulary, merges),
        _folder_decoder(vocabulary),
    )


def clean(caption: str) -> str:
    """Return a caption as CLIP sees it.

    Broken encodings are mended (ftfy), HTML entities resolved twice, white space
    collapsed, letters lowered.
    """
    # Printable ASCII without entities has nothing to mend: three quarters of the time.
    if not caption.isascii() or not caption.isprintable() or "&" in caption:
        caption = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return " ".join(caption.split()).lower()


Encoder = Callable[[list[str]], list[list[int]]]
"""Clean texts without literal special tokens to ids, without start and end."""

Decoder = Callable[[list[int]], str]
"""Ids without special ones to text, with a space where a word ends."""


@dataclass(frozen=True)
class _BytePairTokenizer:
    vocab_size: int
    encoder: Encoder
    decoder: Decoder

    @property
    def mask_id(self) -> int:
        return self.vocab_size - 3

    @property
    def start_id(self) -> int:
        return self.vocab_size - 2

    @property
    def end_id(self) -> int:
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
        for row, text, ids in zip(rows, texts, self.encoder(texts), strict=True):
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
                text = self.decoder(row[start : place + 1]).rstrip(" ")
                found.append(Word(text, start, place + 1))
                start = place + 1
        return tuple(found)

    def _ends_word(self, ids: list[int]) -> bool:
        """Whether the first of two ids is the last one of its word."""
        return ids[1] >= self.mask_id or self.decoder(ids[:1]).endswith(" ")

    def _encode_literal(self, text: str) -> list[int]:
        """Encode a text that spells special tokens out, as the official code does."""
        special = {START: [self.start_id], END: [self.end_id]}
        pieces = list(_split_literal(text))
        encoded = zip(pieces, self.encoder(pieces), strict=True)
        return [i for piece, ids in encoded for i in special.get(piece, ids)]


def _split_literal(text: str) -> Iterator[str]:
    """Split at special tokens; one that follows a punctuation mark is ordinary text."""
    begin = 0
    for found in _LITERAL.finditer(text):
        before, word = text[begin : found.start()], found.group()
        if not before or _ends_token(before[-1]):
            yield from (before, word)
            begin = found.end()
        else:
            # Between marks and letters every token ends anyway: cut there, so that no
            # encoder can take the pieces for the special token.
            yield from (before + "<|", word[2:-2])
            begin = found.end() - 2
    yield text[begin:]


def _ends_token(character: str) -> bool:
    """Tell letters, digits and spaces from marks, which would run on into `<|`."""
    return character.isspace() or unicodedata.category(character)[0] in "LN"


def _clip_encoder() -> Encoder:
    """Return the encoder of CLIP's own vocabulary, which the Rust package carries."""
    from instant_clip_tokenizer import Tokenizer as InstantTokenizer

    encode = InstantTokenizer().encode
    mask = _CLIP_VOCABULARY - 3

    def encode_texts(texts: list[str]) -> list[list[int]]:
        return [_without_mask([int(i) for i in encode(t)], mask) for t in texts]

    return encode_texts


def _clip_decoder() -> Decoder:
    """Return the decoder that belongs to `_clip_encoder`."""
    from instant_clip_tokenizer import Tokenizer as InstantTokenizer

    return InstantTokenizer().decode


def _without_mask(ids: list[int], mask: int) -> list[int]:
    """Undo the merge whose id the mask has taken."""
    if mask not in ids:
        return ids
    return [j for i in ids for j in (_JEKYLL if i == mask else (i,))]


def _folder_encoder(
    vocabulary: dict[str, int], merges: list[tuple[str, str]]
) -> Encoder:
    """Return the encoder of a Hugging Face vocabulary.

    Built from the two tables alone, so that nothing else in the folder (added tokens,
    truncation) changes the ids.
    """
    # What transformers' CLIPTokenizer wraps: it takes seconds to import, and tells
    # whoever has no PyTorch of it at every start. A test holds the two together.
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    model = models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>")
    backend = Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )

    def encode_texts(texts: list[str]) -> list[list[int]]:
        encoded = backend.encode_batch(texts, add_special_tokens=False)
        return [item.ids for item in encoded]

    return encode_texts


def _folder_decoder(vocabulary: dict[str, int]) -> Decoder:
    """Return the decoder of a Hugging Face vocabulary."""
    entries = {place: entry for entry, place in vocabulary.items()}
    values = _byte_values()

    def decode(ids: list[int]) -> str:
        text = "".join(entries[i].replace("</w>", " ") for i in ids)
        # A space is no symbol: it stands as U+0120 where a text holds one.
        encoded = bytes(32 if s == " " else values[s] for s in text)
        return encoded.decode("utf-8", errors="replace")

    return decode


def _read_folder(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Read vocabulary and merges, with the mask put in its place."""
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    _check_vocabulary(vocabulary, folder)
    merges = _read_merges(folder / "merges.txt")
    place = len(vocabulary) - 3
    entry = sorted(vocabulary, key=vocabulary.__getitem__)[place]
    if entry == MASK:
        return vocabulary, merges
    kept = [m for m in merges if "".join(m) != entry and entry not in m]
    if len(kept) == len(merges):
        raise ValueError(
            f"{folder}/vocab.json: entry {place} is {entry!r}, wanted {MASK!r} or the "
            "result of a merge, which can give its place to it"
        )
    return _renamed(vocabulary, entry, MASK), kept


def _read_merges(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines[0].startswith("#version"):
        lines = lines[1:]
    pairs = [tuple(line.strip().split(" ")) for line in lines if line.strip()]
    for number, pair in enumerate(pairs):
        if len(pair) != 2:
            raise ValueError(
                f"{path}: merge {number} is {' '.join(pair)!r}, wanted two symbols "
                "with a space between"
            )
    return pairs


def _renamed(vocabulary: dict[str, int], old: str, new: str) -> dict[str, int]:
    return {new if entry == old else entry: i for entry, i in vocabulary.items()}


def _check_vocabulary(vocabulary: dict[str, int], folder: Path) -> None:
    size = len(vocabulary)
    if sorted(vocabulary.values()) != list(range(size)):
        raise ValueError(f"{folder}/vocab.json: its {size} ids are not 0 to {size - 1}")
    found = {entry: vocabulary.get(entry) for entry in (START, END)}
    if found != {START: size - 2, END: size - 1}:
        raise ValueError(
            f"{folder}/vocab.json: wanted {START} at {size - 2} and {END} at "
            f"{size - 1}, the last two entries; found {found}"
        )
    symbols = _byte_symbols()
    missing = [
        s for s in symbols + [s + "</w>" for s in symbols] if s not in vocabulary
    ]
    if missing:
        raise ValueError(
            f"{folder}/vocab.json: lacks {len(missing)} of the 512 byte symbols "
            f"({' '.join(missing[:5])} ...); a text with one of them would have no ids"
        )


def _byte_symbols() -> list[str]:
    """Return the 256 characters that stand for bytes in GPT-2 style vocabularies."""
    return list(_byte_values())


def _byte_values() -> dict[str, int]:
    """Return which byte each of those characters stands for."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
