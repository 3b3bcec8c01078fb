# SPDX-License-Identifier: Apache-2.0
"""Captions cut to the length their batch needs, since padding costs compute too."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64


@dataclass(frozen=True)
class Captions:
    """All captions of a split as ids, with the lengths a batch may be cut to.

    Attributes:
        tokens: One row of ids per caption.
        lengths: Number of ids in each caption, including start and end.
        buckets: Allowed lengths in increasing order; the last is l.
    """

    tokens: Int32[np.ndarray, "p l"]
    lengths: Int64[np.ndarray, "p"]
    buckets: tuple[int, ...]

    @staticmethod
    def of(tokens: Int32[np.ndarray, "p l"], buckets: tuple[int, ...]) -> "Captions":
        """Measure the captions.

        Raises:
            ValueError: See `check_buckets`.
        """
        full = tokens.shape[1]
        check_buckets(buckets, full)
        # Look for the end, which has the largest id: id 0 is padding, but also "!".
        return Captions(tokens, tokens.argmax(axis=1) + 1, (*buckets, full))

    def cut(self, pairs: Int64[np.ndarray, "b"]) -> int:
        """Return the smallest allowed length that holds these captions."""
        longest = self.lengths[pairs].max()
        return next(bucket for bucket in self.buckets if bucket >= longest)


def check_buckets(buckets: tuple[int, ...], context_length: int) -> None:
    """Check the lengths that captions may be cut to, without the context length.

    Raises:
        ValueError: They do not increase, or lie outside 2..context_length-1.
    """
    fitting = all(2 <= bucket < context_length for bucket in buckets)
    if not fitting or list(buckets) != sorted(set(buckets)):
        raise ValueError(
            f"caption buckets {buckets}: wanted increasing lengths from 2 to "
            f"{context_length - 1}, below the context length"
        )
