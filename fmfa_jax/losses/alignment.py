# SPDX-License-Identifier: Apache-2.0
"""Explicit fine-grained alignment (EFA): words against the patches they select.

Source: arXiv 2509.13754; the grouping of patches by words follows SPARC (Bica et al.
2024). Nothing of size [b, b, n, l] ever exists. All of it is float32, but for the
operands of `best_cosines` where its caller wants them in bfloat16.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fmfa_jax.losses.arithmetic import EXACT, same_person, unit, wide
from fmfa_jax.losses.comparison import best_cosines
from fmfa_jax.losses.matching import pair_contrast

RULES = ("official", "plus")
# Added to every gap of the official rule, by what is compared with the groups.
WORD_MARGIN, PATCH_MARGIN = 0.1, 0.9
# A row of similarities that varies by less, relative to its size, is noise.
FLAT = 1e-6

Compare = Callable[[Array, Array, Array], Array]
"""From rows, groups and their mask to the best cosines, as `best_cosines`."""


def efa(
    text_tokens: Float[Array, "b l d"],
    image_tokens: Float[Array, "b n d"],
    *,
    rule: str = "official",
    person: Int[Array, " b"] | None = None,
    text_mask: Bool[Array, "b l"] | None = None,
    scale: float = 14.0,
    threshold: float = 0.5,
    compare: Compare = best_cosines,
) -> Float[Array, ""]:
    """Words and patches should fit the groups of their own pair better than others'.

    Each word pools the patches that it resembles into one vector, its group. A pair
    (i, j) scores by the best group of j for every word (and every patch) of i.

    Args:
        text_tokens: All positions.
        image_tokens: All tokens; the first, the class token, is ignored.
        rule: "official", as released: all positions, log-sum-exp, row-normalised
            scores, margins; its value is nearly constant. "plus": padding is left out,
            scores are means of cosines, and a contrast with temperature in both
            directions takes all pairs of one person as positives.
        person: Identity of each pair; needed by "plus".
        text_mask: Positions that hold words; needed by "plus".
        scale: 1 / temperature of "plus".
        threshold: "plus" leaves a patch out of a word's group below this share of the
            word's range of similarities; "official" uses 1 / number of patches.
        compare: `best_cosines`, or the same with other operands, for another backend,
            or spread over devices.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, got {rule!r}.")
    text, patches = wide(text_tokens), wide(image_tokens[:, 1:])
    if rule == "official":
        return _official(text, patches, compare)
    if person is None or text_mask is None:
        raise ValueError("efa with rule='plus' wants both person and text_mask.")
    groups = grouped_patches(text, patches, threshold=threshold)
    positive = same_person(person)
    everywhere = jnp.ones(patches.shape[:2], bool)
    directions = [
        pair_contrast(
            _mean_scores(compare(rows, groups, text_mask), mask), positive, scale=scale
        ).mean()
        for rows, mask in ((text, text_mask), (patches, everywhere))
    ]
    return sum(directions) / 2


def _official(
    text: Float[Array, "b l d"], patches: Float[Array, "b p d"], compare: Compare
) -> Float[Array, ""]:
    """The sum of both comparisons, as the released code has it."""
    groups = grouped_patches(text, patches, threshold=1 / patches.shape[1])
    everywhere = jnp.ones(groups.shape[:2], bool)
    losses = []
    for rows, margin in ((text, WORD_MARGIN), (patches, PATCH_MARGIN)):
        best = compare(rows, groups, everywhere)
        scores = unit(jax.nn.logsumexp(best, axis=0))
        losses.append(_margin_loss(scores, margin=margin))
    return sum(losses)


def grouped_patches(
    text: Float[Array, "b l d"], patches: Float[Array, "b p d"], *, threshold: float
) -> Float[Array, "b l d"]:
    """For each word the mean of its own picture's patches, weighed by similarity.

    Dot products are scaled to 0..1 over the patches, those up to `threshold` dropped,
    and the rest normalised to sum to 1. A word equally similar to all patches gets
    zeros.

    In float32 whatever the towers compute in: rounded operands would move patches over
    the threshold, and this is a b-th of the work of `best_cosines`.
    """
    similar = jnp.einsum("bld,bpd->blp", text, patches, precision=EXACT)
    low = similar.min(axis=-1, keepdims=True)
    span = similar.max(axis=-1, keepdims=True) - low
    varied = span > FLAT * jnp.abs(similar).max(axis=-1, keepdims=True)
    share = jnp.where(varied, (similar - low) / jnp.where(varied, span, 1), 0)
    share = jnp.where(share > threshold, share, 0)
    total = share.sum(axis=-1, keepdims=True)
    share = share / jnp.where(total > 0, total, 1)
    return jnp.einsum("blp,bpd->bld", share, patches, precision=EXACT)


def _mean_scores(
    best: Float[Array, "x b b"], mask: Bool[Array, "b x"]
) -> Float[Array, "b b"]:
    """Average over the positions of each item that count; 0 where none does."""
    total = jnp.sum(best, axis=0, where=mask.T[..., None])
    return total / jnp.maximum(mask.sum(axis=1), 1)[:, None]


def _margin_loss(scores: Float[Array, "b b"], *, margin: float) -> Float[Array, ""]:
    """Log-sum-exp over each column of the gaps to the row's and the column's own score.

    Both reduce over the same axis, as in the released code.
    """
    own = jnp.diagonal(scores)
    diagonal = jnp.eye(len(scores), dtype=bool)
    gaps = (scores - own[:, None] + margin, scores - own[None, :] + margin)
    return sum(
        jax.nn.logsumexp(jnp.where(diagonal, 0, gap), axis=0).mean() for gap in gaps
    )
