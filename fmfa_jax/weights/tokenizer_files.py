# SPDX-License-Identifier: Apache-2.0
"""The tokenizer that belongs to a model, as the files that transformers opens."""

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from data_pipeline.byte_pairs import (
    END,
    MASK,
    START,
    WORD_END,
    Merge,
    byte_entries,
    clip_tokenizer,
    read_tables,
)
from data_pipeline.regular import read_json
from fmfa_jax.files import write_json, write_text
from fmfa_jax.weights.tensors import WeightsError

CLIP_VOCABULARY = 49408
_FILES = ("vocab.json", "merges.txt")


def tokenizer_of(source: str | Path, vocab_size: int) -> str:
    """Return the name of the tokenizer that belongs to weights; "" if unknown.

    Args:
        source: Weight file, Hugging Face folder or run folder.
        vocab_size: Rows of the token embedding.
    """
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    if all((folder / name).is_file() for name in _FILES):
        return str(folder)
    try:
        name = read_json(folder / "config.json").get("data.tokenizer")
    except (OSError, ValueError, AttributeError):
        name = None
    fallback = "clip" if vocab_size == CLIP_VOCABULARY else ""
    return name if isinstance(name, str) and name else fallback


def write_tokenizer(
    folder: Path, name: str, *, vocab_size: int, context_length: int
) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json.

    Ids equal those of `data_pipeline.tokenizer`, the mask included, for texts that need
    no repair (it also mends broken encodings and HTML entities).

    Args:
        folder: Destination.
        name: "clip" or a folder with vocab.json and merges.txt.
        vocab_size: Rows of the token embedding, which the vocabulary must have.
        context_length: Text positions.

    Raises:
        WeightsError: The tokenizer cannot be read, or has another size.
    """
    try:
        vocabulary, merges = (
            clip_tables() if name == "clip" else read_tables(Path(name).expanduser())
        )
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"tokenizer {name!r}: {error}; name the model's (--tokenizer)"
        ) from error
    if len(vocabulary) != vocab_size:
        raise WeightsError(
            f"the tokenizer {name!r} has {len(vocabulary)} entries, the model wants "
            f"{vocab_size}; name the model's (--tokenizer)"
        )
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "processor_class": "CLIPProcessor",
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "do_lower_case": True,
        "model_max_length": context_length,
    }
    write_text(
        folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False, indent=None)
    )
    write_text(folder / "merges.txt", "\n".join(lines) + "\n")
    write_json(folder / "tokenizer_config.json", config)


def clip_tables() -> tuple[dict[str, int], list[Merge]]:
    """Return CLIP's vocabulary and merges, with the mask in the last merge's place.

    The package that embeds them only encodes and decodes. Entries are spelled from what
    they decode to, and each merge is what earlier ones leave of its result, as
    byte-pair encoding is deterministic.
    """
    decode, alone = clip_tokenizer().decode, byte_entries()
    symbols = dict(zip(_BYTES, alone[:256], strict=True))
    entries = alone + [
        "".join(symbols[byte] for byte in raw) + WORD_END * ends
        for raw, ends in (
            _bytes_of(place, decode) for place in range(512, CLIP_VOCABULARY - 3)
        )
    ]
    ranks = {entry: place for place, entry in enumerate(entries)}
    merges = [_last_merge(entry, ranks) for entry in entries[512:]]
    for place, entry in enumerate((MASK, START, END)):
        ranks[entry] = len(entries) + place
    return ranks, merges


# The bytes in the order of the entries that stand for them alone.
_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES += [byte for byte in range(256) if byte not in _BYTES]
# Bytes that make whole characters of pieces: before one that begins within a character,
# and, up to three times, after one that ends within.
_BEFORE = (b"", b"\xc3", b"\xe1", b"\xf1")
_AFTER = (b"\xa0", b"\x80")
_UNKNOWN = "\ufffd"


def _bytes_of(place: int, decode: Callable[[list[int]], str]) -> tuple[bytes, bool]:
    """Return the bytes of an entry, and whether it ends a word."""
    text = decode([place])
    ends = text.endswith(" ")
    if _UNKNOWN not in text:
        return text.removesuffix(" ").encode(), ends
    for before, after, count in itertools.product(_BEFORE, _AFTER, range(4)):
        around = [_BYTES.index(byte) for byte in before + after * count]
        inside = [*around[: len(before)], place, *around[len(before) :]]
        whole = decode(inside).removesuffix(" ")
        if _UNKNOWN not in whole and not (ends and count):
            raw = whole.encode()
            return raw[len(before) : len(raw) - count], ends
    # The character that stands for what cannot be decoded is an entry, too.
    return text.removesuffix(" ").encode(), ends


def _last_merge(entry: str, ranks: Mapping[str, int]) -> Merge:
    """Return the two entries that an entry was merged from."""
    own = ranks[entry]
    end = WORD_END if entry.endswith(WORD_END) else ""
    pieces = list(entry.removesuffix(end))
    pieces[-1] += end
    while len(pieces) > 2:
        best, place = min(
            (ranks.get(a + b, own), i)
            for i, (a, b) in enumerate(itertools.pairwise(pieces))
        )
        if best >= own:
            break
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return pieces[0], "".join(pieces[1:])
