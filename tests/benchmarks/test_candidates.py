# SPDX-License-Identifier: Apache-2.0
"""The alignments that were tried, against their definitions written as loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.ablation import candidates
from benchmarks.ablation.candidates import CANDIDATES, SHARE
from fmfa_jax.losses.alignment import SCALE, Tokens
from fmfa_jax.losses.comparison import best_cosines

BATCH, WORDS, PATCHES, WIDTH = 4, 6, 5, 8
LENGTHS = np.array([4, 2, 3, 1])
PEOPLE = np.array([0, 1, 0, 2])


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    text = rng.normal(size=(BATCH, WORDS, WIDTH)).astype(np.float32)
    image = rng.normal(size=(BATCH, 1 + PATCHES, WIDTH)).astype(np.float32)
    places = np.arange(WORDS)
    words = (places > 0) & (places <= LENGTHS[:, None])  # between start and end
    return Tokens(*map(jnp.asarray, (text, image, PEOPLE, words)), best_cosines)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def sides(tokens):
    """Words and patches of each pair, as unit vectors."""
    words = [
        unit(np.asarray(x)[m]) for x, m in zip(tokens.text, tokens.words, strict=True)
    ]
    return words, [unit(np.asarray(x)[1:]) for x in tokens.image]


def contrast(scores):
    total = 0.0
    for matrix in (scores, scores.T):
        log_p = SCALE * matrix
        log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        same = PEOPLE[:, None] == PEOPLE
        total -= (log_p * same / same.sum(axis=1, keepdims=True)).sum(axis=1).mean() / 2
    return total


def scored(tokens, score):
    words, patches = sides(tokens)
    return np.array([[score(w, p) for p in patches] for w in words])


def late(tokens):
    return contrast(scored(tokens, lambda w, p: (w @ p.T).max(axis=1).mean()))


def late_both(tokens):
    backwards = contrast(scored(tokens, lambda w, p: (p @ w.T).max(axis=1).mean()))
    return (late(tokens) + backwards) / 2


def within(tokens):
    words, _ = sides(tokens)
    total = 0.0
    for number, w in enumerate(words):
        text = np.asarray(tokens.text[number])[np.asarray(tokens.words[number])]
        similar = text @ np.asarray(tokens.patches[number]).T
        low, high = similar.min(1, keepdims=True), similar.max(1, keepdims=True)
        share = (similar - low) / (high - low)
        share = np.where(share > 0.5, share, 0)
        groups = (
            share / share.sum(1, keepdims=True) @ np.asarray(tokens.patches[number])
        )
        scores = SCALE * w @ unit(groups).T
        for matrix in (scores, scores.T):
            total -= np.diag(
                matrix - np.log(np.exp(matrix).sum(1, keepdims=True))
            ).sum()
    return total / 2 / LENGTHS.sum()


def distilled(tokens):
    end = np.array(
        [x[n + 1] for x, n in zip(np.asarray(tokens.text), LENGTHS, strict=True)]
    )
    globals_ = SCALE * unit(end) @ unit(np.asarray(tokens.image)[:, 0]).T
    best = SCALE * scored(tokens, lambda w, p: (w @ p.T).max(axis=1).mean())
    total = 0.0
    for teacher, taught in ((best, globals_), (best.T, globals_.T)):
        p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (teacher, taught))
        total += (p * np.log(p / q)).sum(axis=1).mean() / 2
    return total + late(tokens)


def selected(tokens):
    words, patches = sides(tokens)
    ends = [x[n + 1] for x, n in zip(np.asarray(tokens.text), LENGTHS, strict=True)]

    def pooled(rows, whole, most):
        return rows[np.argsort(-(rows @ unit(whole)))[:most]].mean(axis=0)

    text = [pooled(w, e, int(SHARE * WORDS)) for w, e in zip(words, ends, strict=True)]
    image = [
        pooled(p, np.asarray(x)[0], 1)
        for p, x in zip(patches, tokens.image, strict=True)
    ]
    return contrast(unit(np.array(text)) @ unit(np.array(image)).T)


def transport(tokens):
    def score(w, p):
        cosines = w @ p.T
        kernel = np.exp(cosines / candidates.ENTROPY)
        columns = np.ones(len(p))
        for _ in range(candidates.ROUNDS):
            rows = 1 / len(w) / (kernel @ columns)
            columns = 1 / len(p) / (kernel.T @ rows)
        rows = 1 / len(w) / (kernel @ columns)
        return (rows[:, None] * kernel * columns * cosines).sum()

    return contrast(scored(tokens, score))


# In the order of the candidates.
SLOW = (late, late_both, within, distilled, selected, transport)
ORACLES = dict(zip(CANDIDATES, SLOW, strict=True))


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_candidate_is_what_its_definition_says(name, tokens):
    def loss(text, image):
        return CANDIDATES[name](
            Tokens(text, image, tokens.person, tokens.words, tokens.compare)
        )

    value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(tokens.text, tokens.image)
    np.testing.assert_allclose(value, ORACLES[name](tokens), rtol=1e-4)
    for slope in slopes:
        assert np.isfinite(slope).all() and np.abs(slope).max() > 0


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_caption_without_a_word_harms_nobody(name, tokens):
    words = tokens.words.at[1].set(False)

    def loss(text, image):
        return CANDIDATES[name](
            Tokens(text, image, tokens.person, words, tokens.compare)
        )

    value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(tokens.text, tokens.image)
    assert all(np.isfinite(x).all() for x in (value, *slopes))
