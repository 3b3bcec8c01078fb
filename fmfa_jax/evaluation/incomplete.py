# SPDX-License-Identifier: Apache-2.0
"""Incomplete queries: captions of which some words are hidden."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from data_pipeline.tokenizer import WordTokenizer

WAYS = ("mask", "drop")
"""A hidden word becomes the mask token, as in masked language modelling, or is gone."""


@dataclass(frozen=True)
class HidingTokenizer:
    """A tokenizer that hides a share of each caption's words.

    Which words is a function of the seed and the caption alone: they are shuffled, and
    the first ones are hidden, so that a smaller share lies within a larger one. Of a
    caption that is too long, only what the model would see counts. Marks without a
    letter or digit are no words and stay.

    Attributes:
        tokenizer: The model's own.
        share: Share of the words, in [0, 1]; their number is rounded.
        seed: Another seed hides other words.
        way: One of `WAYS`. All ids of a masked word become the mask.
    """

    tokenizer: WordTokenizer
    share: float
    seed: int = 0
    way: str = "mask"

    @property
    def vocab_size(self) -> int:
        """See `Tokenizer`."""
        return self.tokenizer.vocab_size

    @property
    def mask_id(self) -> int:
        """See `Tokenizer`."""
        return self.tokenizer.mask_id

    @property
    def start_id(self) -> int:
        """See `Tokenizer`."""
        return self.tokenizer.start_id

    @property
    def end_id(self) -> int:
        """See `Tokenizer`."""
        return self.tokenizer.end_id

    def encode(
        self, captions: Sequence[str], context_length: int
    ) -> Int32[np.ndarray, "p l"]:
        """See `Tokenizer.encode`."""
        rows = self.tokenizer.encode(captions, context_length)
        for row, caption in zip(rows, captions, strict=True):
            hidden = self._hidden(row, caption)
            row[hidden] = self.mask_id
            if self.way == "drop":
                kept = np.delete(row, hidden)
                row[:] = np.pad(kept, (0, len(row) - len(kept)))
        return rows

    def _hidden(self, row: np.ndarray, caption: str) -> list[int]:
        """Return the positions of the hidden words' ids."""
        words = [
            word
            for word in self.tokenizer.words(row)
            if any(letter.isalnum() for letter in word.text)
        ]
        digest = hashlib.sha256(f"{self.seed}\n{caption}".encode(errors="replace"))
        rng = np.random.default_rng(list(digest.digest()))
        chosen = rng.permutation(len(words))[: round(self.share * len(words))]
        return [place for i in chosen for place in range(words[i].start, words[i].stop)]
