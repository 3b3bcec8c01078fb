# SPDX-License-Identifier: Apache-2.0
"""EFA against oracles that hold everything at once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmfa_jax import models
from fmfa_jax.losses import comparison, efa
from fmfa_jax.losses.comparison import best_cosines

BATCH, WORDS, PATCHES, WIDTH = 5, 4, 7, 6
PEOPLE = np.array([3, 1, 3, 0, 2])
PERSON = jnp.asarray(PEOPLE)
# Captions of one to four words.
LENGTHS = (4, 2, 3, 1, 4)
MASK = jnp.arange(WORDS)[None] < jnp.asarray(LENGTHS)[:, None]


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    text = rng.normal(size=(BATCH, WORDS, WIDTH))
    image = rng.normal(size=(BATCH, 1 + PATCHES, WIDTH))
    return jnp.asarray(text, jnp.float32), jnp.asarray(image, jnp.float32)


def normalised(x):
    return x / jnp.sqrt((x * x).sum(-1, keepdims=True))


def naive_groups(text, patches, threshold):
    similar = jnp.einsum("bld,bpd->blp", text, patches)
    low, high = similar.min(-1, keepdims=True), similar.max(-1, keepdims=True)
    share = (similar - low) / (high - low)
    share = jnp.where(share <= threshold, 0, share)
    share = share / share.sum(-1, keepdims=True)
    return jnp.einsum("blp,bpd->bld", share, patches)


def naive_best(rows, groups):
    """[x, i, j] through the array of all pairs, which the product never makes."""
    pairs = jnp.einsum("ixd,jld->ijxl", normalised(rows), normalised(groups))
    return pairs.max(-1).transpose(2, 0, 1)


def naive_official(text, image):
    patches = image[:, 1:]
    groups = naive_groups(text, patches, 1 / patches.shape[1])
    total = 0.0
    for rows, margin in ((text, 0.1), (patches, 0.9)):
        f = normalised(jnp.log(jnp.exp(naive_best(rows, groups)).sum(0)))
        for j in range(BATCH):
            columns = ([], [])
            for i in range(BATCH):
                columns[0].append(f[i, j] - f[i, i] + margin if i != j else 0.0)
                columns[1].append(f[i, j] - f[j, j] + margin if i != j else 0.0)
            total += sum(jnp.log(jnp.exp(jnp.stack(c)).sum()) for c in columns) / BATCH
    return total


def naive_plus(text, image):
    patches = image[:, 1:]
    groups = naive_groups(text, patches, 0.5)
    total = 0.0
    for rows, lengths in ((text, LENGTHS), (patches, [PATCHES] * BATCH)):
        f = {}
        for i in range(BATCH):
            for j in range(BATCH):
                words = groups[j, : LENGTHS[j]]
                part = rows[i, : lengths[i]]
                cosine = normalised(part) @ normalised(words).T
                f[i, j] = 14 * cosine.max(1).mean()
        scores = jnp.stack(
            [jnp.stack([f[i, j] for j in range(BATCH)]) for i in range(BATCH)]
        )
        for matrix in (scores, scores.T):
            log_p = matrix - jnp.log(jnp.exp(matrix).sum(1, keepdims=True))
            for i in range(BATCH):
                same = PEOPLE == PEOPLE[i]
                total -= log_p[i][same].mean() / BATCH / 4
    return total


@pytest.mark.parametrize("rule", ["official", "plus"])
def test_efa_equals_the_oracle_in_value_and_gradient(tokens, rule):
    def ours(text, image):
        return efa(text, image, rule=rule, person=PERSON, text_mask=MASK)

    slow = naive_official if rule == "official" else naive_plus
    (value, gradients), (expected, wanted) = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(*tokens) for f in (ours, slow)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for got, want in zip(gradients, wanted, strict=True):
        assert np.abs(want).max() > 1e-3
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("positions", [1, 2, 3, PATCHES])
def test_blocks_of_any_size_give_one_result(tokens, monkeypatch, positions, backend):
    """Sizes that divide the positions, that leave a rest, and that hold them all.

    Both backends' ways, in value and gradient; the oracle's gradient is autodiff's.
    """
    at_once = positions * BATCH * BATCH * WORDS
    monkeypatch.setattr(comparison, "AT_ONCE_CPU", at_once)
    monkeypatch.setattr(comparison, "AT_ONCE_ACCELERATOR", at_once)
    text, image = tokens
    rows, weight = image[:, 1:], jnp.sin(jnp.arange(BATCH * BATCH) + 1.0)
    everywhere = jnp.ones((BATCH, WORDS), bool)

    def ours(rows, groups):
        best = best_cosines(rows, groups, everywhere, backend=backend)
        return jnp.sum(best * weight.reshape(BATCH, BATCH)), best

    def naive(rows, groups):
        best = naive_best(rows, groups)
        return jnp.sum(best * weight.reshape(BATCH, BATCH)), best

    (got, best), (want, oracle) = (
        jax.jit(jax.grad(f, argnums=(0, 1), has_aux=True))(rows, text)
        for f in (ours, naive)
    )
    np.testing.assert_allclose(best, oracle, atol=1e-6)
    for ours_, oracles in zip(got, want, strict=True):
        assert np.abs(oracles).max() > 0.1
        np.testing.assert_allclose(ours_, oracles, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_of_groups_that_tie_the_first_takes_the_gradient(tokens, backend):
    text, image = tokens
    twice = jnp.concatenate([text[:, :2], text[:, :2]], axis=1)
    everywhere = jnp.ones((BATCH, WORDS), bool)

    def total(groups):
        best = best_cosines(image, groups, everywhere, backend=backend)
        return jnp.sum(best)

    gradient = jax.grad(total)(twice)
    assert np.abs(gradient[:, :2]).min(axis=(0, 2)).max() > 0
    assert not gradient[:, 2:].any()


def tower_tokens():
    """Words and patches of eight random pairs: float32 towers', bfloat16 towers'."""
    config = models.PRESETS["demo"]
    params = models.init_params(config, 0)
    rng = np.random.default_rng(0)
    pixels = jnp.asarray(rng.normal(size=(8, *config.image_size, 3)), jnp.float32)
    ids = jnp.asarray(rng.integers(1, config.vocab_size, (8, config.context_length)))

    @jax.jit
    def encode(params):
        both = [
            dataclasses.replace(config, dtype=name) for name in ("float32", "bfloat16")
        ]
        both = [models.bind(each, params) for each in both]
        return [(each.encode_texts(ids), each.encode_images(pixels)) for each in both]

    return jax.device_get(encode(params))


def test_bfloat16_operands_err_less_than_bfloat16_towers():
    """Both against float64, in value and gradient, norm-wise."""

    def compiled(operands, backend):
        compare = functools.partial(best_cosines, operands=operands, backend=backend)
        loss = functools.partial(efa, compare=compare)
        loss = jax.value_and_grad(loss, argnums=(0, 1))
        return jax.jit(loss)

    exact, rounded = tower_tokens()
    with jax.enable_x64(True):
        run = compiled("float32", "cpu")
        reference, towers = (
            jax.device_get(run(*(jnp.asarray(x, jnp.float64) for x in tokens)))
            for tokens in (exact, rounded)
        )

    def errors(found):
        return [
            np.linalg.norm(np.float64(ours) - want) / np.linalg.norm(want)
            for ours, want in zip(
                jax.tree.leaves(found), jax.tree.leaves(reference), strict=True
            )
        ]

    allowed = errors(towers)
    for backend in ("cpu", "gpu"):
        ours = errors(compiled("bfloat16", backend)(*exact))
        assert all(0 < mine < bound for mine, bound in zip(ours, allowed, strict=True))


def sizes_in(jaxpr):
    """Elements of every array inside a program, loops and branches included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for value in jax.tree.leaves(equation.params):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sizes_in(inner)


@pytest.mark.parametrize("rule", ["official", "plus"])
def test_all_pairs_never_exist_at_once(rule):
    """Neither forwards nor backwards; shapes only, nothing is computed."""
    batch, words, patches, width = 64, 77, 192, 32
    shapes = (
        jax.ShapeDtypeStruct((batch, words, width), jnp.float32),
        jax.ShapeDtypeStruct((batch, 1 + patches, width), jnp.float32),
    )
    person, mask = jnp.arange(batch), jnp.ones((batch, words), bool)

    def loss(text, image):
        return efa(text, image, rule=rule, person=person, text_mask=mask)

    program = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1)))(*shapes)
    sizes = list(sizes_in(program.jaxpr))
    assert len(sizes) > 100
    assert max(sizes) * 20 < batch * batch * words * patches


def test_padding_takes_no_part_in_plus(tokens):
    text, image = tokens
    noise = jnp.where(MASK[..., None], text, 1e3)

    @jax.jit
    def both(text):
        plus = efa(text, image, rule="plus", person=PERSON, text_mask=MASK)
        return plus, efa(text, image)

    (plus, official), (plus_noise, official_noise) = both(text), both(noise)
    np.testing.assert_allclose(plus, plus_noise, rtol=1e-6)
    assert official != official_noise


def test_the_class_token_takes_no_part(tokens):
    text, image = tokens
    value = jax.jit(efa)
    changed = image.at[:, 0].set(9.0)
    np.testing.assert_array_equal(value(text, image), value(text, changed))


def test_what_plus_wants_is_named(tokens):
    with pytest.raises(ValueError, match="person and text_mask"):
        efa(*tokens, rule="plus", person=PERSON)
    with pytest.raises(ValueError, match=r"official.*'paper'"):
        efa(*tokens, rule="paper")
