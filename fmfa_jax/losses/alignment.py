# SPDX-License-Identifier: Apache-2.0
"""Explicit fine-grained alignment (EFA): words against the patches they select.

Source: arXiv 2509.13754; the grouping of patches by words follows SPARC (Bica et al.
2024). Nothing of size [b, b, n, l] ever exists. All of it is float32, but for the
operands of `best_cosines` where its caller wants them in bfloat16.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fmfa_jax.losses.arithmetic import EXACT, same_person, unit, wide
from fmfa_jax.losses.comparison import best_cosines
from fmfa_jax.losses.matching import pair_contrast

# Added to every gap of the official rule, by what is compared with the groups.
WORD_MARGIN, PATCH_MARGIN = 0.1, 0.9
# Of the rule "plus": 1 / temperature, and the share of a word's range of similarities
# below which a patch is left out of its group; "official" has 1 / number of patches.
SCALE, THRESHOLD = 14.0, 0.5
# A row of similarities that varies by less, relative to its size, is noise.
FLAT = 1e-6

Compare = Callable[[Array, Array, Array], Array]
"""From rows, groups and their mask to the best cosines, as `best_cosines`."""


@dataclass(frozen=True)
class Tokens:
    """What a rule of EFA is given.

    Attributes:
        text: All positions, float32.
        image: All tokens, the class token first, float32.
        person: Identity of each pair; None where nobody has said.
        words: Positions that hold words; None where nobody has said.
        compare: `best_cosines`, or the same with other operands, for another backend,
            or spread over devices.
    """

    text: Float[Array, "b l d"]
    image: Float[Array, "b n d"]
    person: Int[Array, " b"] | None
    words: Bool[Array, "b l"] | None
    compare: Compare

    @property
    def patches(self) -> Float[Array, "b p d"]:
        """The image's tokens without the class token."""
        return self.image[:, 1:]

    @property
    def same(self) -> Bool[Array, "b b"]:
        """Which pairs are of one person.

        Raises:
            ValueError: Nobody has said who they are.
        """
        if self.person is None or self.words is None:
            raise ValueError("this rule of efa wants both person and text_mask.")
        return same_person(self.person)


def efa(
    text_tokens: Float[Array, "b l d"],
    image_tokens: Float[Array, "b n d"],
    *,
    rule: str = "official",
    person: Int[Array, " b"] | None = None,
    text_mask: Bool[Array, "b l"] | None = None,
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
        compare: See `Tokens`.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {tuple(RULES)}, got {rule!r}.")
    tokens = Tokens(wide(text_tokens), wide(image_tokens), person, text_mask, compare)
    return RULES[rule](tokens)


def _plus(tokens: Tokens) -> Float[Array, ""]:
    """The mean of both comparisons, each a contrast of all pairs."""
    same, patches = tokens.same, tokens.patches
    groups = grouped_patches(tokens.text, patches, threshold=THRESHOLD)
    everywhere = jnp.ones(patches.shape[:2], bool)
    sides = ((tokens.text, tokens.words), (patches, everywhere))
    directions = [
        pair_contrast(
            mean_scores(tokens.compare(rows, groups, tokens.words), mask),
            same,
            scale=SCALE,
        ).mean()
        for rows, mask in sides
    ]
    return sum(directions) / 2


def _official(tokens: Tokens) -> Float[Array, ""]:
    """The sum of both comparisons, as the released code has it."""
    text, patches = tokens.text, tokens.patches
    groups = grouped_patches(text, patches, threshold=1 / patches.shape[1])
    everywhere = jnp.ones(groups.shape[:2], bool)
    losses = []
    for rows, margin in ((text, WORD_MARGIN), (patches, PATCH_MARGIN)):
        best = tokens.compare(rows, groups, everywhere)
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


def mean_scores(
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


RULES: dict[str, Callable[[Tokens], Array]] = {"official": _official, "plus": _plus}
"""The rules by the names that config.loss.efa_rule knows; another may be added."""
