# SPDX-License-Identifier: Apache-2.0
"""Several sentences as one query: the mean of their unit features."""

import numpy as np
from jaxtyping import Float, Float32, Int

from fmfa_jax.evaluation.blocks import unit_rows


def joined_queries(
    text: Float[np.ndarray, "p d"], images: Int[np.ndarray, "p"], count: int
) -> tuple[Float32[np.ndarray, "q d"], Int[np.ndarray, "q"]]:
    """Join the first sentences about each picture into one query.

    Args:
        text: Feature of each sentence, in the annotation's order.
        images: Picture that each sentence is about.
        count: Sentences for a query; a picture with fewer gives all that it has.

    Returns:
        The mean of the sentences' unit features, and the picture of each query.

    Raises:
        ValueError: `count` is below 1, or a feature is not finite.
    """
    if count < 1:
        raise ValueError(f"expected at least 1 sentence for a query, got {count}")
    order = np.argsort(images, kind="stable")
    asked, first, of_query = np.unique(
        images[order], return_index=True, return_inverse=True
    )
    used = np.arange(len(order)) - first[of_query] < count
    rows = unit_rows(text[order[used]], name="text")
    total = np.zeros((len(asked), rows.shape[1]), np.float32)
    np.add.at(total, of_query[used], rows)
    number = np.bincount(of_query[used], minlength=len(asked))
    return total / number[:, None].astype(np.float32), asked
