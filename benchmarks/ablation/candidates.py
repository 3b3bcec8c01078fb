# SPDX-License-Identifier: Apache-2.0
r"""Explicit alignments that were tried in place of EFA's, and `main.py` with them.

    python -m benchmarks.ablation.candidates --config=configs/demo.py:repaired \
        --config.loss.efa_rule=late --workdir=runs/late

Each is a rule as `alignment.RULES` holds them, by the name that its row has. None of
them is a preset: docs/results.md says what they brought.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fmfa_jax import losses
from fmfa_jax.losses.alignment import (
    RULES,
    SCALE,
    THRESHOLD,
    Tokens,
    grouped_patches,
    mean_scores,
)
from fmfa_jax.losses.arithmetic import EXACT, unit
from fmfa_jax.losses.matching import pair_contrast
from fmfa_jax.main import program

SHARE = 0.3  # of patches and words that "selected" keeps, as RDE's TSE
# Of "transport": strength of the entropy, and Sinkhorn's rounds.
ENTROPY, ROUNDS = 0.1, 10
FAR = -1e4


def late(tokens: Tokens) -> Float[Array, ""]:
    """Late interaction: the mean over a caption's words of the best patch.

    Khattab and Zaharia, SIGIR 2020, as FILIP has it for pictures (Yao et al., ICLR
    2022), in the direction of the words alone.
    """
    return pair_contrast(_by_words(tokens), tokens.same, scale=SCALE).mean()


def late_both(tokens: Tokens) -> Float[Array, ""]:
    """The same in both directions: each patch has its best word, too."""
    everywhere = jnp.ones(tokens.patches.shape[:2], bool)
    best = tokens.compare(tokens.patches, tokens.text, tokens.words)
    by_patches = mean_scores(best, everywhere)
    contrasts = [
        pair_contrast(scores, tokens.same, scale=SCALE).mean()
        for scores in (_by_words(tokens), by_patches.T)
    ]
    return sum(contrasts) / 2


def within(tokens: Tokens) -> Float[Array, ""]:
    """SPARC: a word's group of patches against the caption's other words' groups.

    Bica et al., ICML 2024, both directions. Nothing of another pair takes part.
    """
    groups = grouped_patches(tokens.text, tokens.patches, threshold=THRESHOLD)
    words = tokens.words
    scores = SCALE * jnp.einsum(
        "bld,bmd->blm", unit(tokens.text), unit(groups), precision=EXACT
    )
    rows = [
        jnp.diagonal(
            jax.nn.log_softmax(jnp.where(words[:, None], x, FAR), axis=-1), 0, 1, 2
        )
        for x in (scores, scores.swapaxes(1, 2))
    ]
    count = jnp.maximum(words.sum(), 1)
    return -sum(jnp.sum(x, where=words) for x in rows) / (2 * count)


def distilled(tokens: Tokens) -> Float[Array, ""]:
    """What late interaction ranks teaches what the globals rank.

    The divergence of the globals' softmax over a batch from that of `late`, held
    constant; and `late` itself, so that there is something to teach.
    """
    teacher, taught = _by_words(tokens), _global_scores(tokens)
    kl = 0.0
    for x, y in ((teacher, taught), (teacher.T, taught.T)):
        target = jax.lax.stop_gradient(jax.nn.log_softmax(SCALE * x, axis=1))
        log_p = jax.nn.log_softmax(SCALE * y, axis=1)
        kl += jnp.sum(jnp.exp(target) * (target - log_p), axis=1).mean() / 2
    return kl + pair_contrast(teacher, tokens.same, scale=SCALE).mean()


def selected(tokens: Tokens) -> Float[Array, ""]:
    """TSE without a head: the tokens nearest to the globals, averaged, contrasted."""
    end = _end(tokens)
    image = _nearest(tokens.patches, tokens.image[:, 0], None)
    text = _nearest(tokens.text, end, tokens.words)
    scores = jnp.matmul(unit(text), unit(image).T, precision=EXACT)
    return pair_contrast(scores, tokens.same, scale=SCALE).mean()


def transport(tokens: Tokens) -> Float[Array, ""]:
    """Entropic optimal transport from words to patches scores each pair.

    Cuturi, NeurIPS 2013; the plan is held constant, so that the gradient is that of the
    cosines under it. All pairs [b, b, l, p] exist at once.
    """
    cosines = jnp.einsum(
        "ild,jpd->ijlp", unit(tokens.text), unit(tokens.patches), precision=EXACT
    )
    weight = tokens.words / jnp.maximum(tokens.words.sum(axis=1, keepdims=True), 1)
    plan = jax.lax.stop_gradient(_plan(cosines, weight))
    scores = jnp.sum(plan * cosines, axis=(2, 3))
    return pair_contrast(scores, tokens.same, scale=SCALE).mean()


def _plan(
    cosines: Float[Array, "i j l p"], weight: Float[Array, "i l"]
) -> Float[Array, "i j l p"]:
    """Sinkhorn's plan: words weigh as given, patches alike."""
    energy = cosines / ENTROPY
    log_words = jnp.where(weight > 0, jnp.log(jnp.maximum(weight, 1e-9)), FAR)
    log_words = jnp.broadcast_to(log_words[:, None], cosines.shape[:3])
    log_patches = jnp.full(cosines.shape[:2] + cosines.shape[3:], 0.0)
    log_patches -= jnp.log(cosines.shape[3])

    def again(_: int, column: Array) -> Array:
        row = log_words - jax.nn.logsumexp(energy + column[:, :, None], axis=3)
        return log_patches - jax.nn.logsumexp(energy + row[..., None], axis=2)

    column = jax.lax.fori_loop(0, ROUNDS, again, jnp.zeros_like(log_patches))
    row = log_words - jax.nn.logsumexp(energy + column[:, :, None], axis=3)
    return jnp.exp(row[..., None] + energy + column[:, :, None])


def _by_words(tokens: Tokens) -> Float[Array, "b b"]:
    """[i, j]: the mean over caption i's words of the best patch of picture j."""
    everywhere = jnp.ones(tokens.patches.shape[:2], bool)
    best = tokens.compare(tokens.text, tokens.patches, everywhere)
    return mean_scores(best, tokens.words)


def _global_scores(tokens: Tokens) -> Float[Array, "b b"]:
    return losses.cosines(_end(tokens), tokens.image[:, 0])


def _end(tokens: Tokens) -> Float[Array, "b d"]:
    """The global of each caption: the position after its last word."""
    positions = jnp.arange(tokens.words.shape[1])
    last = jnp.max(jnp.where(tokens.words, positions, 0), axis=1)
    index = jnp.minimum(last + 1, tokens.words.shape[1] - 1)
    return jnp.take_along_axis(tokens.text, index[:, None, None], axis=1)[:, 0]


def _nearest(
    tokens: Float[Array, "b n d"],
    whole: Float[Array, "b d"],
    counted: Bool[Array, "b n"] | None,
) -> Float[Array, "b d"]:
    """The mean of the tokens with the largest cosines with the global feature."""
    near = jnp.einsum("bnd,bd->bn", unit(tokens), unit(whole), precision=EXACT)
    near = jax.lax.stop_gradient(near)
    near = near if counted is None else jnp.where(counted, near, FAR)
    best, index = jax.lax.top_k(near, max(1, int(SHARE * near.shape[1])))
    chosen = jnp.take_along_axis(unit(tokens), index[..., None], axis=1)
    kept = (best > FAR)[..., None]
    return jnp.sum(chosen * kept, axis=1) / jnp.maximum(kept.sum(axis=1), 1)


CANDIDATES = {
    "late": late,
    "late-both": late_both,
    "within": within,
    "distilled": distilled,
    "selected": selected,
    "transport": transport,
}


if __name__ == "__main__":
    RULES.update(CANDIDATES)
    program()
