# SPDX-License-Identifier: Apache-2.0
"""Cross-entropies: who is it, and which word was hidden."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from fmfa_jax.losses.arithmetic import wide
from fmfa_jax.losses.blocks import count_blocks, join, split

# Scores that exist at once: 64 MiB on a CPU, 512 MiB on an accelerator. Fewer, and the
# product with the vocabulary would mostly wait for the vocabulary.
AT_ONCE_CPU, AT_ONCE_ACCELERATOR = 2**24, 2**27


def identity_loss(
    image_logits: Float[Array, "b k"],
    text_logits: Float[Array, "b k"],
    person: Int[Array, " b"],
) -> Float[Array, ""]:
    """Cross-entropy of both modalities' identity scores: the mean of `pair_identity`.

    Args:
        image_logits: Scores of the pictures.
        text_logits: Scores of the captions, from the same classifier.
        person: Identity of each pair, 0..k-1.
    """
    return pair_identity(image_logits, text_logits, person).mean()


def pair_identity(
    image_logits: Float[Array, "b k"],
    text_logits: Float[Array, "b k"],
    person: Int[Array, " b"],
) -> Float[Array, " b"]:
    """Cross-entropy of each pair's identity scores, averaged over both modalities."""
    both = [token_losses(x, person) for x in (image_logits, text_logits)]
    return sum(both) / 2


def token_losses(
    logits: Float[Array, "*rows v"], labels: Int[Array, "*rows"]
) -> Float[Array, "*rows"]:
    """Cross-entropy of each row of scores."""
    log_p = jax.nn.log_softmax(wide(logits), axis=-1)
    return -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]


def word_losses(
    score: Callable[[Any, Array], Array],
    head: Any,
    hidden: Float[Array, "b c d"],
    labels: Int[Array, "b c"],
    *,
    backend: str = "cpu",
) -> Float[Array, "b c"]:
    """`token_losses` of a head's scores, which never exist all at once.

    A few positions c of all items at a time, scored again in the backward pass. Where
    no item has a label, nothing is computed: the labelled positions come first, and
    most captions have far fewer than there is room for.

    Args:
        score: From a head and rows [.., d] to scores [.., v].
        head: Parameters, a pytree.
        hidden: Rows to score.
        labels: See `token_losses`.
        backend: In JAX's words; the blocks are larger where it is not "cpu".
    """
    items, positions = labels.shape
    scores = jax.eval_shape(score, head, hidden[0, :1])
    most = AT_ONCE_CPU if backend == "cpu" else AT_ONCE_ACCELERATOR
    blocks = count_blocks(positions, values=items * scores.size, most=most)
    cut = (split(x.swapaxes(0, 1), blocks) for x in (hidden, labels))
    return join(_word_losses(score, head, *cut), positions).T


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _word_losses(
    score: Callable[[Any, Array], Array],
    head: Any,
    hidden: Float[Array, "k p b d"],
    labels: Int[Array, "k p b"],
) -> Float[Array, "k p b"]:
    """Losses block by block; 0 for a block without a label."""
    return _forward(score, head, hidden, labels)[0]


def _forward(
    score: Callable[[Any, Array], Array], head: Any, hidden: Array, labels: Array
) -> tuple[Array, tuple[Any, ...]]:
    def losses(rows: Array, labels: Array) -> tuple[Array, Array]:
        """Return each row's cross-entropy, and its logits' log-sum-exp."""
        logits = wide(score(head, rows))
        total = jax.nn.logsumexp(logits, axis=-1)
        own = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        return total - own, total

    def none(rows: Array, labels: Array) -> tuple[Array, Array]:
        nothing = jnp.zeros_like(labels, wide(rows).dtype)
        return nothing, nothing

    def of_block(block: tuple[Array, Array]) -> tuple[Array, Array]:
        return lax.cond(block[1].any(), losses, none, *block)

    found, totals = lax.map(of_block, (hidden, labels))
    return found, (head, hidden, labels, totals)


def _backward(
    score: Callable[[Any, Array], Array], kept: tuple[Any, ...], cotangent: Array
) -> tuple[Any, Array, None]:
    head, *blocks = kept

    def add(grads: Any, block: tuple[Array, ...]) -> tuple[Any, Array]:
        """Add a block's gradient to that of the head."""
        rows, labels, total, weight = block
        logits, pull = jax.vjp(score, head, rows)
        own = labels[..., None] == jnp.arange(logits.shape[-1])
        slope = (jnp.exp(wide(logits) - total[..., None]) - own) * weight[..., None]
        of_head, of_rows = pull(slope.astype(logits.dtype))
        return jax.tree.map(jnp.add, grads, of_head), of_rows

    def skip(grads: Any, block: tuple[Array, ...]) -> tuple[Any, Array]:
        return grads, jnp.zeros_like(block[0])

    def of_block(grads: Any, block: tuple[Array, ...]) -> tuple[Any, Array]:
        return lax.cond(block[1].any(), add, skip, grads, block)

    zeros = jax.tree.map(jnp.zeros_like, head)
    grads, of_rows = lax.scan(of_block, zeros, (*blocks, cotangent))
    return grads, of_rows, None


_word_losses.defvjp(_forward, _backward)


def labelled_mean(
    losses: Float[Array, "b c"], labels: Int[Array, "b c"]
) -> Float[Array, ""]:
    """Average of `token_losses` over the labelled rows of the batch; 0 without any."""
    counted = labels != 0
    return jnp.sum(wide(losses), where=counted) / jnp.maximum(counted.sum(), 1)
