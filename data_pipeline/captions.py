# SPDX-License-Identifier: Apache-2.0
"""Captions cut to the length that their batch needs: padding is computed, too."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64


@dataclass(frozen=True)
class Captions:
    """All captions of a split as ids, and the lengths that a batch may be cut to.

    Attributes:
        tokens: one row of ids per caption.
        lengths: of each caption, start and end included.
        buckets: rising lengths; the last is l.
    """

    tokens: Int32[np.ndarray, "p l"]
    lengths: Int64[np.ndarray, "p"]
    buckets: tuple[int, ...]

    @staticmethod
    def of(tokens: Int32[np.ndarray, "p l"], buckets: tuple[int, ...]) -> "Captions":
        """Measure the captions.

        Raises:
            ValueError: `buckets` (without l) do not rise, or lie outside 2..l-1.
        """
        full = tokens.shape[1]
        if list(buckets) != sorted(set(buckets)) or not all(
            2 <= bucket < full for bucket in buckets
        ):
            raise ValueError(
                f"caption buckets {buckets}: wanted rising lengths from 2 to "
                f"{full - 1}, below the context length"
            )
        # The end has the largest id. Id 0 is padding, but also a word: "!".
        return Captions(tokens, tokens.argmax(axis=1) + 1, (*buckets, full))

    def cut(self, pairs: Int64[np.ndarray, "b"]) -> int:
        """Return the smallest length that holds these captions."""
        longest = self.lengths[pairs].max()
        return next(bucket for bucket in self.buckets if bucket >= longest)
