# SPDX-License-Identifier: Apache-2.0
"""Byte-pair vocabularies: CLIP's own, and those of Hugging Face folders."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline import regular
from data_pipeline.hints import printable

START, END, MASK = "<|startoftext|>", "<|endoftext|>", "<|mask|>"
WORD_END = "</w>"
"""What marks the last symbol of a word in a vocabulary."""

_JOINT = "tokenizer.json"
TABLES = (("vocab.json", "merges.txt"), (_JOINT,))
"""The files that hold the tables of a folder; the first that are there are read."""

LARGEST_TABLE = 16 << 20
"""Larger files are refused; CLIP's have 1 MB."""

_CLIP_VOCABULARY = 49408
_JEKYLL = (43893, 865)  # "jeky" + "ll</w>": the parts of the last merge, 49405
# Byte pairs are merged only within these: a short ending, letters, a digit, or marks.
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"

Encoder = Callable[[list[str]], list[list[int]]]
"""Clean texts without literal special tokens to ids, without start and end."""

Decoder = Callable[[list[int]], str]
"""Ids without special ones to text, with a space where a word ends."""

Merge = tuple[str, str]


@dataclass(frozen=True)
class BytePairs:
    """A byte-pair vocabulary whose last three entries are mask, start and end.

    Attributes:
        size: Number of entries, V.
        encode: See `Encoder`.
        decode: See `Decoder`.
    """

    size: int
    encode: Encoder
    decode: Decoder

    def fingerprint(self) -> str:
        """Return the hex SHA-256 of the entries, and of their ids as texts.

        Every merge has a part in it, and no file: the same vocabulary in other files
        has the same fingerprint.
        """
        texts = [self._text(i) for i in range(self.size - 3)]
        # Once as a word's beginning, where other merges come in, and once as its end.
        words = [2 * text.strip().lower() for text in texts]
        told = json.dumps([texts, self.encode(words)])
        return hashlib.sha256(told.encode()).hexdigest()

    def _text(self, entry: int) -> str:
        try:
            return self.decode([entry])
        except KeyError:  # of no bytes: no text can have it
            return ""


def clip_tokenizer() -> Any:
    """Return the tokenizer of a Rust package, in which CLIP's vocabulary is embedded.

    Raises:
        ValueError: If the package is not installed; not every system has a build.
    """
    try:
        from instant_clip_tokenizer import Tokenizer
    except ImportError as error:
        raise ValueError(
            "CLIP's vocabulary comes with the package instant-clip-tokenizer, which "
            f"cannot be imported here ({error}): install it or, where it has no build, "
            "name a folder with the vocab.json and merges.txt of CLIP's tokenizer"
        ) from error
    return Tokenizer()


def clip_byte_pairs() -> BytePairs:
    """Return CLIP's own vocabulary.

    Raises:
        ValueError: See `clip_tokenizer`.
    """
    clip = clip_tokenizer()
    mask = _CLIP_VOCABULARY - 3

    def encode(texts: list[str]) -> list[list[int]]:
        return [_without_mask([int(i) for i in clip.encode(t)], mask) for t in texts]

    return BytePairs(_CLIP_VOCABULARY, encode, clip.decode)


def folder_byte_pairs(folder: Path) -> BytePairs:
    """Return the vocabulary of a folder with vocab.json and merges.txt, or neither.

    Without them the tables are read from tokenizer.json.

    The vocabulary may have any size; its last two entries are `<|startoftext|>` and
    `<|endoftext|>`. The entry before them is `<|mask|>`, or the result of a merge,
    which then gives up its place to the mask.

    Raises:
        ValueError: If the vocabulary does not have that form.
    """
    vocabulary, merges = read_tables(folder)
    return BytePairs(
        len(vocabulary), folder_encoder(vocabulary, merges), _folder_decoder(vocabulary)
    )


def _without_mask(ids: list[int], mask: int) -> list[int]:
    """Undo the merge whose id is taken by the mask."""
    if mask not in ids:
        return ids
    return [j for i in ids for j in (_JEKYLL if i == mask else (i,))]


def folder_encoder(vocabulary: dict[str, int], merges: list[Merge]) -> Encoder:
    """Return the encoder of a Hugging Face vocabulary.

    It is built from the two tables alone, so that nothing else in the folder (added
    tokens, truncation) can change the ids.
    """
    # What transformers' CLIPTokenizer wraps, which takes seconds to import and warns at
    # every start when PyTorch is absent. A test holds the two together.
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    model = models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=WORD_END)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )

    def encode(texts: list[str]) -> list[list[int]]:
        encoded = backend.encode_batch(texts, add_special_tokens=False)
        return [item.ids for item in encoded]

    return encode


def _folder_decoder(vocabulary: dict[str, int]) -> Decoder:
    """Return the decoder of a Hugging Face vocabulary."""
    entries = {place: entry for entry, place in vocabulary.items()}
    values = {symbol: byte for byte, symbol in _byte_symbols().items()}

    def decode(ids: list[int]) -> str:
        """Return the text of token ids."""
        text = "".join(entries[i].replace(WORD_END, " ") for i in ids)
        # A space is not a symbol: a literal one in a text is written as U+0120.
        encoded = bytes(32 if s == " " else values[s] for s in text)
        return encoded.decode("utf-8", errors="replace")

    return decode


def table_files(folder: Path) -> tuple[str, ...]:
    """Return the names of the files that hold a folder's tables; () if it has none."""
    whole = (files for files in TABLES if all((folder / f).is_file() for f in files))
    return next(whole, ())


def read_tables(folder: Path) -> tuple[dict[str, int], list[Merge]]:
    """Read the vocabulary and the merges of a folder, with the mask in its place.

    Raises:
        OSError: If a file cannot be read.
        ValueError: See `folder_byte_pairs`.
    """
    path = folder / (table_files(folder) or TABLES[0])[0]
    tables = _read_json(path)
    if path.name == _JOINT:
        vocabulary, merges = _joint_tables(path, tables)
    else:
        vocabulary, merges = tables, _read_merges(folder / "merges.txt")
    _check_vocabulary(vocabulary, path)
    _check_merges(merges, vocabulary)
    pairs = [merge for _, merge in merges]
    place = len(vocabulary) - 3
    entry = sorted(vocabulary, key=vocabulary.__getitem__)[place]
    if entry == MASK:
        return vocabulary, pairs
    kept = [m for m in pairs if "".join(m) != entry and entry not in m]
    if len(kept) == len(pairs):
        raise ValueError(
            f"{path}: entry {place} is {entry!r}, wanted {MASK!r} or the "
            "result of a merge, which can give up its place to it"
        )
    return {MASK if e == entry else e: i for e, i in vocabulary.items()}, kept


def _read_json(path: Path) -> Any:
    try:
        return regular.read_json(path, largest=LARGEST_TABLE)
    except ValueError as error:
        raise ValueError(f"{path}: wanted a JSON file, got: {error}") from error


Placed = tuple[str, tuple[str, ...]]
"""A merge, not yet checked, and where it stands."""


def _joint_tables(path: Path, tables: Any) -> tuple[dict[str, int], list[Placed]]:
    """Return the tables of a tokenizer.json, which transformers 5 writes alone."""
    model = tables.get("model") if isinstance(tables, dict) else None
    kind = {"type": "BPE", "end_of_word_suffix": WORD_END}
    if not isinstance(model, dict) or any(model.get(k) != v for k, v in kind.items()):
        raise ValueError(
            f"{path}: wanted a CLIP tokenizer, byte pairs whose words end in {WORD_END}"
        )
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        raise ValueError(f"{path}: wanted model.vocab, an object, and model.merges")
    added = tables.get("added_tokens") or []
    if not isinstance(added, list) or not all(map(_is_token, added)):
        raise ValueError(f"{path}: wanted added_tokens to be a list of objects")
    extra = {token["content"]: token.get("id") for token in added}
    # Early files write a merge as one text, later ones as two.
    pairs = (each.split(" ") if isinstance(each, str) else each for each in merges)
    placed = [
        (f"{path}, merge {number}", tuple(pair) if _is_texts(pair) else ())
        for number, pair in enumerate(pairs)
    ]
    return vocabulary | extra, placed


def _is_token(token: Any) -> bool:
    return isinstance(token, dict) and isinstance(token.get("content"), str)


def _is_texts(pair: Any) -> bool:
    return isinstance(pair, list) and all(isinstance(each, str) for each in pair)


def _read_merges(path: Path) -> list[Placed]:
    try:
        text = regular.read_regular(path, largest=LARGEST_TABLE).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: wanted UTF-8, got: {error}") from error
    lines = list(enumerate(text.split("\n"), start=1))
    if lines[0][1].startswith("#version"):
        lines = lines[1:]
    filled = [(line, text.strip()) for line, text in lines if text.strip()]
    return [
        (f"{path}, line {line}: merge {number}", tuple(text.split(" ")))
        for number, (line, text) in enumerate(filled)
    ]


def _check_merges(merges: list[Placed], vocabulary: dict[str, int]) -> None:
    seen = set()
    for place, merge in merges:
        shown = printable(" ".join(merge)[:80])
        if len(merge) != 2:
            raise ValueError(
                f"{place} is {shown!r}, wanted two symbols separated by a space"
            )
        if missing := [e for e in (*merge, "".join(merge)) if e not in vocabulary]:
            raise ValueError(
                f"{place} is {shown!r}: {printable(missing[0][:80])!r} is not in the "
                "vocabulary"
            )
        if merge in seen:
            raise ValueError(f"{place} is {shown!r}, which is there already")
        seen.add(merge)


def _check_vocabulary(vocabulary: Any, path: Path) -> None:
    if not isinstance(vocabulary, dict) or any(
        type(place) is not int for place in vocabulary.values()
    ):
        raise ValueError(f"{path}: wanted an object of entries with whole numbers")
    size = len(vocabulary)
    if sorted(vocabulary.values()) != list(range(size)):
        raise ValueError(f"{path}: its {size} ids are not 0 to {size - 1}")
    found = {entry: vocabulary.get(entry) for entry in (START, END)}
    if found != {START: size - 2, END: size - 1}:
        raise ValueError(
            f"{path}: wanted {START} at {size - 2} and {END} at "
            f"{size - 1}, the last two entries; found {found}"
        )
    missing = [symbol for symbol in byte_entries() if symbol not in vocabulary]
    if missing:
        raise ValueError(
            f"{path}: lacks {len(missing)} of the 512 byte symbols "
            f"({' '.join(missing[:5])} ...); texts that need one would have no ids"
        )


def byte_entries() -> list[str]:
    """Return the 512 entries a vocabulary begins with: all bytes, then word ends."""
    symbols = list(_byte_symbols().values())
    return [*symbols, *(symbol + WORD_END for symbol in symbols)]


def _byte_symbols() -> dict[int, str]:
    """Map each byte to its character in GPT-2 style vocabularies, in their order.

    Printable Latin-1 characters stand for themselves and come first; the other bytes
    are written as the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + place) for place, byte in enumerate(others)
    }
