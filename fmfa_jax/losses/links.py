# SPDX-License-Identifier: Apache-2.0
"""Relations between the pairs of one batch: who is near whom, in both modalities.

Source: Dual-Granularity Cross-Modal Identity Association (arXiv 2507.06744); the
equation numbers in this package are that paper's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fmfa_jax.losses.arithmetic import EXACT, wide

EPSILON = 1e-6  # added to the target before its logarithm, as in the official code
_SMALLEST = 1e-30  # squared norms below this belong to no direction


def inverse_norm(features: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    """One over the length of each row, float32 at least; 0 for a zero row.

    Its gradient is finite everywhere, and zero for a zero row.
    """
    features = wide(features)
    square = jnp.sum(features * features, axis=-1)
    lives = square > _SMALLEST
    return jnp.where(lives, 1.0 / jnp.sqrt(jnp.where(lives, square, 1.0)), 0.0)


def cosine_matrix(
    left: Float[Array, "rows d"], right: Float[Array, "columns d"]
) -> Float[Array, "rows columns"]:
    """All cosines, in float32 at least and at full precision.

    Reduced-precision products err by up to 4e-3, too coarse for a threshold. The norms
    divide the products, not the features: half the rounding, which a scale of 50 and an
    exponential would magnify.
    """
    left, right = wide(left), wide(right)
    products = jnp.matmul(left, right.T, precision=EXACT)
    return products * (inverse_norm(left)[:, None] * inverse_norm(right)[None, :])


def local_relations(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    *,
    threshold: float = 0.7,
    image_id: Int[Array, " b"] | None = None,
) -> Bool[Array, "b b"]:
    """M (3)-(5): pairs whose images AND whose texts are nearer than `threshold`.

    Symmetric, with a true diagonal. With `image_id`, captions of one image are linked
    whatever their cosines: that they show the same person is known, not guessed.
    No gradient flows through it.
    """
    image, text = jax.lax.stop_gradient((image, text))
    linked = cosine_matrix(image, image) > threshold
    linked &= cosine_matrix(text, text) > threshold
    if image_id is not None:
        linked |= image_id[:, None] == image_id[None, :]
    return linked | jnp.eye(len(image), dtype=bool)


def linked_share(relations: Bool[Array, "b b"]) -> Float[Array, ""]:
    """Share in [0, 1] of the pairs (i, j), i != j, that are linked.

    Near one, the features are almost collinear and thresholds mean nothing: what an
    untrained tower yields.
    """
    size = len(relations)
    return (jnp.sum(relations) - size) / jnp.float32(max(size * (size - 1), 1))


def reverse_kl(
    logits: Float[Array, "r c"],
    targets: Float[Array, "r c"],
    *,
    columns: Bool[Array, " c"] | None = None,
) -> Float[Array, " r"]:
    """KL(p || q) of each row, p = softmax(logits), q = softmax(targets) + EPSILON.

    Args:
        logits: similarity logits; these carry the gradient.
        targets: target logits, -inf where no probability belongs. A constant.
        columns: the live columns; a dead one has p = 0 and changes neither the value
            nor the gradient. At least one must live.
    """
    if columns is not None:
        logits = jnp.where(columns, logits, -jnp.inf)
        targets = jnp.where(columns, targets, -jnp.inf)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    log_q = jnp.log(jax.nn.softmax(jax.lax.stop_gradient(targets), axis=-1) + EPSILON)
    # A dead column has log p = -inf, and 0 * inf must appear nowhere.
    finite = log_p if columns is None else jnp.where(columns, log_p, 0.0)
    return jnp.sum(jnp.exp(log_p) * (finite - log_q), axis=-1)


def local_targets(
    relations: Bool[Array, "b b"], *, strength: float = 0.1
) -> Float[Array, "b b"]:
    """Target logits (6): 1 for the own pair, `strength` for a linked one, else -inf."""
    own = jnp.eye(len(relations), dtype=bool)
    links = jnp.where(relations, jnp.float32(strength), -jnp.inf)
    return jnp.where(own, jnp.float32(1.0), links)


def local_loss(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    *,
    scale: float = 50.0,
    threshold: float = 0.7,
    strength: float = 0.1,
    image_id: Int[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Local association (3)-(10), image to text plus text to image.

    On an augmented view of the same pairs this is the consistency loss (19)-(21).

    Args:
        image: image features, any scale.
        text: text features, any scale.
        scale: 1 / tau of the logits.
        threshold: cosine above which two pairs are linked.
        strength: target logit of a linked pair (lambda).
        image_id: see `local_relations`.
    """
    relations = local_relations(image, text, threshold=threshold, image_id=image_id)
    targets = local_targets(relations, strength=strength)
    logits = scale * cosine_matrix(image, text)
    return jnp.mean(reverse_kl(logits, targets) + reverse_kl(logits.T, targets))
