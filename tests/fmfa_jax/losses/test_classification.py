# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np

from fmfa_jax.losses import identity_loss, labelled_mean, token_losses


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
