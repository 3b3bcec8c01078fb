# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmfa_jax.losses import cmpm, cosines, itc, sdm

PERSON = jnp.asarray([4, 2, 4, 9, 2, 7])


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=(6, 5)), jnp.float32) for _ in range(2))


def naive_cosine(one, other):
    return jnp.dot(one, other) / jnp.sqrt(jnp.dot(one, one) * jnp.dot(other, other))


def naive_sdm(image, text, person, *, scale, weight, alpha):
    """Slow oracle: the formulas, one row at a time, for both directions."""
    total = 0.0
    for anchors, others in ((text, image), (image, text)):
        rows = []
        for i in range(len(person)):
            c = jnp.stack([naive_cosine(anchors[i], other) for other in others])
            p = jnp.exp(scale * c) / jnp.exp(scale * c).sum()
            same = np.array(person) == int(person[i])
            q = same / same.sum()
            kl = sum(p[j] * jnp.log(p[j] / (q[j] + 1e-8)) for j in range(len(person)))
            w = 1.0
            if weight == "official":
                best, match = int(np.argmax(c)), int(np.argmax(same))
                w = 1 + alpha * (c[best] - c[match]) if best != match else 1.0
            elif weight == "paper":
                w = 1 + alpha * (p.max() - p[i])
            elif weight == "plus" and not same[int(np.argmax(c))]:
                held = jax.lax.stop_gradient(p)
                w = 1 + alpha * (held.max() - held[same].max())
            rows.append(w * kl)
        total = total + sum(rows) / len(rows)
    return total


@pytest.mark.parametrize(
    ("weight", "alpha"), [("none", 0), ("official", 0.1), ("paper", 10), ("plus", 2)]
)
def test_sdm_equals_the_formulas_in_value_and_gradient(features, weight, alpha):
    """Alphas are the rules' defaults; a low scale keeps many columns alive."""

    def ours(image, text):
        return sdm(image, text, PERSON, scale=5.0, weight=weight)

    def slow(image, text):
        return naive_sdm(image, text, PERSON, scale=5.0, weight=weight, alpha=alpha)

    value, gradients = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(*features)
    expected, wanted = jax.value_and_grad(slow, argnums=(0, 1))(*features)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for got, want in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_official_weight_sends_the_gradient_of_a_tie_to_the_first_column():
    """Pictures 1 and 2 are one vector, and the best of every caption."""
    image = jnp.asarray([[0.0, 1], [1, 0], [1, 0]])
    text = jnp.asarray([[1.0, 0], [1, 0], [1, 0]])
    person = jnp.asarray([0, 1, 2])

    def gap(image, weight):
        return sdm(image, text, person, scale=1.0, weight=weight, alpha=1.0)

    ours = jax.jit(jax.grad(gap), static_argnums=1)(image, "official")
    slow = jax.grad(
        lambda x: naive_sdm(x, text, person, scale=1.0, weight="official", alpha=1.0)
    )(image)
    np.testing.assert_allclose(ours, slow, atol=1e-6)


def test_plus_leaves_rows_alone_whose_best_is_the_person():
    """A hit on another picture of the person is a miss to `official` only."""
    text = jnp.asarray([[1.0, 0.1], [0.9, 0], [0, 1]])
    image = jnp.asarray([[0.7, 0.5], [1.0, 0.1], [0, 1]])
    person = jnp.asarray([0, 0, 1])
    plain = sdm(image, text, person)
    assert sdm(image, text, person, weight="plus") == plain
    assert sdm(image, text, person, weight="official") != plain


def test_unknown_choices_are_refused(features):
    with pytest.raises(ValueError, match=r"official.*'offical'"):
        sdm(*features, PERSON, weight="offical")
    with pytest.raises(ValueError, match=r"mean.*'total'"):
        itc(*features, reduction="total")


def test_cosines_have_captions_in_rows(features):
    image, text = features
    expected = [[naive_cosine(t, v) for v in image] for t in text]
    np.testing.assert_allclose(cosines(text, image), expected, atol=1e-6)


@pytest.mark.parametrize("person", [None, PERSON])
def test_itc_equals_a_loop(features, person):
    image, text = features
    c = 50 * np.asarray(cosines(text, image), np.float64)
    expected = 0.0
    for scores in (c, c.T):
        for i in range(6):
            log_p = scores[i] - np.log(np.exp(scores[i]).sum())
            same = np.arange(6) == i
            if person is not None:
                same = np.asarray(person) == int(person[i])
            expected -= log_p[same].mean() / 6
    mean = itc(image, text, person=person)
    np.testing.assert_allclose(mean, expected / 2, rtol=1e-5)
    total = itc(image, text, person=person, reduction="sum")
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_cmpm_equals_a_loop(features):
    image, text = (np.asarray(x, np.float64) for x in features)
    person = np.asarray(PERSON)
    expected = 0.0
    for anchors, others in ((image, text), (text, image)):
        for i in range(6):
            x = others @ anchors[i] / np.linalg.norm(others, axis=1)
            p = np.exp(x) / np.exp(x).sum()
            same = (person == person[i]).astype(float)
            target = same / np.linalg.norm(same)
            expected += np.sum(p * (np.log(p) - np.log(target + 1e-8))) / 6
    np.testing.assert_allclose(cmpm(*features, PERSON), expected, rtol=1e-5)


def test_order_and_length_of_features_do_not_matter(features):
    image, text = features
    order = jnp.asarray([3, 1, 5, 0, 4, 2])
    for loss in (sdm, lambda i, t, p: itc(i, t, person=p)):
        value = loss(image, text, PERSON)
        shuffled = loss(7 * image[order], text[order] / 3, PERSON[order])
        np.testing.assert_allclose(shuffled, value, rtol=1e-5)
