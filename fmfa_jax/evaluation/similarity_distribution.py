# SPDX-License-Identifier: Apache-2.0
"""mSD, the mean similarity distribution of UFineBench (Zuo et al., CVPR 2024).

Like mAP, but it weighs every picture by how similar it is. With s = (1 + cosine) / 2
and the pictures of a query in some order, the query's SD is the mean over its matches
of (sum of s over the matches up to there) / (sum of s over all pictures up to there),
times 1 - exp(-(mean s of the matches) / (mean s of the others)).

The authors' mSD_Calculator.py (commit 6bdb031) is the only exact definition found. It
sorts the pictures to see WHERE the matches are, but takes s from the gallery's own
order, so that its value depends on how the gallery is listed. `RELEASED` computes that,
to be comparable; `RANKED` takes both in the order of the ranking.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Float64, Int

from fmfa_jax.evaluation.blocks import fitting_queries, unit_rows

RANKED, RELEASED = "ranked", "released"
_NOTHING = np.finfo(np.float64).tiny


def mean_similarity_distribution(
    query: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "g d"],
    query_ids: Int[np.ndarray, "q"],
    gallery_ids: Int[np.ndarray, "g"],
    *,
    order: str = RANKED,
) -> float:
    """Return mSD in percent.

    Among equally similar pictures the wrong ones come first.

    Args:
        query: Features of the queries.
        gallery: Features of the gallery.
        query_ids: Person of each query, whom some but not all pictures show.
        gallery_ids: Person of each picture.
        order: Where s is taken from: RANKED, or RELEASED as the authors' code does.

    Raises:
        ValueError: A query has no match or no other picture, or a feature is not
            finite.
    """
    queries = unit_rows(query, name="query")
    pictures = jax.device_put(unit_rows(gallery, name="gallery"))
    size = fitting_queries(len(queries), len(gallery_ids))
    total = 0.0
    for first in range(0, len(queries), size):
        part = slice(first, first + size)
        right = query_ids[part, None] == gallery_ids
        if not (right.any(axis=1) & ~right.all(axis=1)).all():
            raise ValueError(
                "mSD: every query needs a match and another picture in the gallery"
            )
        cosines = np.asarray(_cosines(queries[part], pictures))
        total += _distribution(cosines, right, order).sum()
    return float(100 * total / len(queries))


def _distribution(
    cosines: Float32[np.ndarray, "b g"], right: Bool[np.ndarray, "b g"], order: str
) -> Float64[np.ndarray, "b"]:
    places = np.lexsort((right, -cosines), axis=-1)
    right = np.take_along_axis(right, places, axis=1)
    if order == RANKED:
        cosines = np.take_along_axis(cosines, places, axis=1)
    similar = cosines.astype(np.float64) / 2 + 0.5
    matching = np.where(right, similar, 0)
    matches, sum_right = right.sum(axis=1), matching.sum(axis=1)
    others = similar.shape[1] - matches
    mean_other = (similar.sum(axis=1) - sum_right) / others
    ratio = sum_right / matches / np.maximum(mean_other, _NOTHING)
    # A similarity of exactly 0 in the first place makes 0 / 0, which counts as 0.
    share = matching.cumsum(axis=1) / np.maximum(similar.cumsum(axis=1), _NOTHING)
    return (share * right).sum(axis=1) / matches * (1 - np.exp(-ratio))


@jax.jit
def _cosines(
    query: Float32[Array, "b d"], gallery: Float32[Array, "g d"]
) -> Float32[Array, "b g"]:
    return jnp.dot(query, gallery.T, precision=jax.lax.Precision.HIGHEST)
