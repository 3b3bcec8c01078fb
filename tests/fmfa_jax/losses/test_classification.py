# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmfa_jax.losses import (
    classification,
    identity_loss,
    labelled_mean,
    token_losses,
    word_losses,
)
from tests.fmfa_jax.losses.test_alignment import sizes_in


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def masked_language_loss(logits, labels):
    return labelled_mean(token_losses(logits, labels), labels)


def cross_entropy(logits, label):
    return np.log(np.exp(logits).sum()) - logits[label]


def test_identity_loss_averages_both_modalities():
    image, text = draw(0, 3, 4), draw(1, 3, 4)
    person = [2, 0, 3]
    rows = [
        (cross_entropy(image[i], k) + cross_entropy(text[i], k)) / 2
        for i, k in enumerate(person)
    ]
    value = identity_loss(image, text, jnp.asarray(person))
    np.testing.assert_allclose(value, np.mean(rows), rtol=1e-5)


def test_masked_language_loss_averages_over_all_labelled_rows():
    """The mean is over rows, not first within captions: three rows here."""
    logits = draw(0, 2, 3, 5)
    labels = jnp.asarray([[4, 2, 0], [0, 1, 0]])
    rows = [
        cross_entropy(logits[0, 0], 4),
        cross_entropy(logits[0, 1], 2),
        cross_entropy(logits[1, 1], 1),
    ]
    value = masked_language_loss(logits, labels)
    np.testing.assert_allclose(value, np.mean(rows), rtol=1e-5)


def test_rows_without_a_label_get_no_gradient():
    logits, labels = draw(0, 2, 3, 5), jnp.asarray([[4, 0, 0], [0, 0, 0]])
    gradient = jax.grad(masked_language_loss)(logits, labels)
    assert np.abs(gradient[0, 0]).min() > 0
    assert not gradient.at[0, 0].set(0).any()


def score(head, rows):
    """A layer whose operands have the dtype of its rows, as the towers' have."""
    kernel = head["kernel"].astype(rows.dtype)
    return jnp.matmul(rows, kernel, preferred_element_type=jnp.float32) + head["bias"]


ITEMS, POSITIONS, WIDTH, WORDS = 3, 5, 4, 7
# Three positions with labels, and nothing at the other two.
LABELS = jnp.asarray([[4, 2, 6, 0, 0], [3, 0, 0, 0, 0], [0, 0, 0, 0, 0]])


@pytest.mark.parametrize("positions", [1, 2, POSITIONS])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_word_losses_equal_those_of_all_scores_at_once(monkeypatch, positions, dtype):
    """In value and in the gradients of rows and head; blocks that leave a rest, too."""
    at_once = positions * ITEMS * WORDS
    monkeypatch.setattr(classification, "AT_ONCE_CPU", at_once)
    head = {"kernel": draw(0, WIDTH, WORDS), "bias": draw(1, WORDS)}
    hidden = draw(2, ITEMS, POSITIONS, WIDTH).astype(dtype)
    # Every row has a weight of its own.
    weight = jnp.where(LABELS != 0, draw(3, ITEMS, POSITIONS), 0)

    def in_blocks(head, hidden):
        return jnp.sum(weight * word_losses(score, head, hidden, LABELS))

    def at_once(head, hidden):
        return jnp.sum(weight * token_losses(score(head, hidden), LABELS))

    (got, ours), (want, oracles) = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(head, hidden)
        for f in (in_blocks, at_once)
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    for mine, oracle in zip(
        jax.tree.leaves(ours), jax.tree.leaves(oracles), strict=True
    ):
        assert mine.dtype == oracle.dtype
        mine, oracle = np.float32(mine), np.float32(oracle)
        np.testing.assert_allclose(mine, oracle, atol=tolerance)
        assert np.abs(oracle).max() > 0.1


def test_scores_of_the_vocabulary_never_exist_at_once():
    """Neither forwards nor backwards; shapes only, nothing is computed."""
    shape = jax.ShapeDtypeStruct
    items, positions, width, words = 64, 28, 16, 49408
    head = {"kernel": shape((width, words), jnp.float32)}
    head["bias"] = shape((words,), jnp.float32)
    hidden = shape((items, positions, width), jnp.float32)
    labels = shape((items, positions), jnp.int32)

    def loss(head, hidden, labels):
        return labelled_mean(word_losses(score, head, hidden, labels), labels)

    program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(head, hidden, labels)
    sizes = list(sizes_in(program.jaxpr))
    assert items * words <= max(sizes) <= classification.AT_ONCE_CPU
