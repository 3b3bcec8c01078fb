# SPDX-License-Identifier: Apache-2.0
"""The named, weighted sum; and every loss on input that breaks the textbook's form."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmfa_jax import models
from fmfa_jax.losses import classification, comparison, itc, sdm, tal
from fmfa_jax.machines.mesh import batch_sharding, make_mesh, replicated
from fmfa_jax.methods.fmfa import TERMS, FMFAMethod, LossOptions, Recipe
from tests.tiny_model import tiny_model

BATCH, TOKENS, WORDS, WIDTH, PEOPLE, ROWS = 6, 5, 4, 8, 6, 2
MODEL = tiny_model(context_length=WORDS, classes=PEOPLE, irr_layers=1)
OPTIONS = {
    "official": LossOptions(),
    "paper": LossOptions(a_sdm_weight="paper", a_sdm_alpha=10.0),
    "plus": LossOptions(a_sdm_weight="plus", efa_rule="plus", itc_positives="person"),
}
FLOATS = ("image_tokens", "text_tokens", "image", "text")
FLOATS += ("image_logits", "text_logits", "masked_losses")


def objective(inputs, weights, options=None):
    """Every named term and "total" of what the model says about one batch."""
    method = FMFAMethod(MODEL, Recipe(losses=weights, loss=options or LossOptions()))
    features = {name: inputs[name] for name in FLOATS if name in inputs}
    notes = {"masked_labels": inputs.get("masked_labels")}
    batch = {name: inputs[name] for name in ("person", "tokens") if name in inputs}
    total, measured = method.compare(features, notes, batch, {})
    return measured.scalars | {"total": total}


def ordinary(dtype=jnp.float32):
    """A batch as it should be: random features, two pairs of one person."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    return {
        "image_tokens": draw(BATCH, TOKENS, WIDTH),
        "text_tokens": draw(BATCH, WORDS, WIDTH),
        "image": draw(BATCH, WIDTH),
        "text": draw(BATCH, WIDTH),
        "person": jnp.asarray([0, 1, 2, 0, 3, 5]),
        "tokens": jnp.ones((BATCH, WORDS), jnp.int32),
        "image_logits": draw(BATCH, PEOPLE),
        "text_logits": draw(BATCH, PEOPLE),
        "masked_losses": draw(BATCH, ROWS),
        "masked_labels": jnp.ones((BATCH, ROWS), jnp.int32),
    }


def change_floats(inputs, change):
    return inputs | {name: change(inputs[name]) for name in FLOATS}


def degenerate(case):
    inputs = ordinary()
    if case == "identical rows":
        return change_floats(inputs, lambda x: jnp.broadcast_to(x[:1], x.shape))
    if case == "zero vectors":
        return change_floats(inputs, jnp.zeros_like)
    if case == "one identity":
        return inputs | {"person": jnp.zeros(BATCH, jnp.int32)}
    if case == "all different":
        return inputs | {"person": jnp.arange(BATCH)}
    if case == "empty captions":
        text = inputs["text_tokens"]
        return inputs | {
            "text_tokens": jnp.broadcast_to(text[:1], text.shape),
            "tokens": jnp.zeros((BATCH, WORDS), jnp.int32),
            "masked_labels": jnp.zeros((BATCH, ROWS), jnp.int32),
        }
    if case == "constant images":
        patch = inputs["image_tokens"][:1, :1]
        return inputs | {
            "image_tokens": jnp.broadcast_to(patch, inputs["image_tokens"].shape),
            "image": jnp.broadcast_to(patch[:, 0], inputs["image"].shape),
        }
    if case == "large":
        return change_floats(inputs, lambda x: 1e4 * x)
    if case == "small":
        return change_floats(inputs, lambda x: 1e-9 * x)
    return inputs


CASES = (
    "ordinary",
    "identical rows",
    "zero vectors",
    "one identity",
    "all different",
    "empty captions",
    "constant images",
    "large",
    "small",
)


@functools.cache
def compiled(name):
    """(terms, gradient of their sum) by those options, compiled once for all cases."""
    options = OPTIONS[name]

    def run(floats, rest):
        values = objective(floats | rest, dict.fromkeys(TERMS, 1.0), options)
        return values["total"], values

    step = jax.jit(jax.value_and_grad(run, has_aux=True))

    def split(inputs):
        floats = {name: inputs[name] for name in FLOATS}
        rest = {name: rows for name, rows in inputs.items() if name not in FLOATS}
        (_, values), gradient = step(floats, rest)
        return jax.device_get((values, gradient))

    return split


@pytest.fixture(scope="module", params=OPTIONS)
def step(request):
    return compiled(request.param)


@pytest.mark.parametrize("case", CASES)
def test_every_loss_is_finite_with_a_finite_gradient(step, case):
    values, gradient = step(degenerate(case))
    assert set(values) == {*TERMS, "total"}
    for name, value in values.items():
        assert np.isfinite(value), name
        assert value.dtype == np.float32
    for name, leaf in gradient.items():
        assert np.isfinite(leaf).all(), name
    if case == "ordinary":
        assert all(np.abs(leaf).max() > 0 for leaf in gradient.values())


def test_bfloat16_features_are_computed_in_float32():
    """Equal to float32 losses of the rounded features; gradients come back in bf16."""
    half = change_floats(ordinary(), lambda x: (300 * x).astype(jnp.bfloat16))
    rounded = change_floats(half, lambda x: x.astype(jnp.float32))
    run = compiled("plus")
    (values, gradient), (expected, _) = run(half), run(rounded)
    for name, value in values.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)
    for leaf in gradient.values():
        assert leaf.dtype == jnp.bfloat16
        assert np.isfinite(leaf.astype(np.float32)).all()


def test_total_is_the_weighted_sum_of_what_has_a_weight():
    x = ordinary()
    values = objective(x, {"sdm": 2.0, "itc": 0.5, "cmpm": 0.0})
    assert set(values) == {"sdm", "itc", "total"}
    np.testing.assert_allclose(values["sdm"], sdm(x["image"], x["text"], x["person"]))
    np.testing.assert_allclose(values["itc"], itc(x["image"], x["text"]))
    np.testing.assert_allclose(
        values["total"], 2 * values["sdm"] + values["itc"] / 2, rtol=1e-6
    )


def test_options_reach_the_terms():
    x = ordinary()
    names = {"sdm": 1.0, "a_sdm": 1.0, "itc": 1.0, "tal": 1.0}
    base = objective(x, names)
    changed = objective(
        x,
        names,
        LossOptions(
            scale=7.0,
            a_sdm_weight="plus",
            itc_positives="person",
            tal_tau=0.05,
            tal_margin=0.2,
        ),
    )
    pairs = tal(x["image"], x["text"], x["person"], tau=0.05, margin=0.2)
    np.testing.assert_allclose(changed["tal"], pairs.sum())
    stronger = objective(x, names, LossOptions(a_sdm_alpha=3.0))
    assert all(base[name] != changed[name] for name in names)
    assert stronger["a_sdm"] != base["a_sdm"]
    assert stronger["sdm"] == base["sdm"]


def test_the_rule_of_efa_is_an_option():
    official, _ = compiled("official")(ordinary())
    plus, _ = compiled("plus")(ordinary())
    assert official["efa"] != plus["efa"]


def test_what_no_loss_reads_may_be_missing():
    x = ordinary()
    globals_alone = {name: x[name] for name in ("image", "text", "person")}
    values = objective(globals_alone, {"itc": 1.0, "id": 0.0})
    np.testing.assert_allclose(values["total"], itc(x["image"], x["text"]))


def test_unknown_losses_are_refused_with_the_near_names():
    with pytest.raises(ValueError, match=r"losses='asdm'.*did you mean a_sdm"):
        Recipe(losses={"asdm": 0.0, "itc": 1.0})
    with pytest.raises(ValueError, match="at least one loss"):
        Recipe(losses={"itc": 0.0})
    with pytest.raises(ValueError, match=r"losses\.itc: wanted at least 0"):
        Recipe(losses={"itc": float("nan")})
    with pytest.raises(ValueError, match=r"itc_positives='image'.*pair, person"):
        LossOptions(itc_positives="image")


def collectives(program):
    """How many a compiled program has, and how many of them inside loops."""
    parts = [
        part for part in program.split("\n\n") if part.lstrip().startswith(("%", "E"))
    ]
    parts = {re.match(r"\s*(?:ENTRY )?%([\w.-]+)", part)[1]: part for part in parts}
    inside, found = set(), set(re.findall(r"body=%([\w.-]+)", program))
    assert found
    while found:
        inside |= found
        called = {
            name for each in found for name in re.findall(r"%([\w.-]+)", parts[each])
        }
        found = (called & parts.keys()) - inside

    def count(names):
        wanted = r" (all-[a-z]+|collective-permute|reduce-scatter)(-start)?\("
        return sum(len(re.findall(wanted, parts[name])) for name in names)

    return count(parts), count(inside)


def test_nothing_travels_once_a_block(monkeypatch):
    """Over four devices, no loop holds a collective: read in the compiled program."""
    monkeypatch.setattr(comparison, "AT_ONCE_CPU", 1)
    monkeypatch.setattr(classification, "AT_ONCE_CPU", 1)
    mesh = make_mesh(devices=jax.devices()[:4])
    method = FMFAMethod(MODEL, Recipe(losses={"efa": 1.0, "mlm": 1.0}), mesh=mesh)

    def rows(dtype, *shape):
        sharding = batch_sharding(mesh)
        return jax.ShapeDtypeStruct((8, *shape), dtype, sharding=sharding)

    batch = {
        "image": rows(jnp.uint8, *MODEL.image_size, 3),
        "tokens": rows(jnp.int32, WORDS),
        "person": rows(jnp.int32),
        "row": rows(jnp.int32),
    }
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
        models.param_shapes(method.model),
    )

    def total(params, batch):
        features, notes = method.encode(params, batch, jax.random.key(0))
        return method.compare(features, notes, batch, {})[0]

    program = jax.jit(jax.grad(total))
    every, inside = collectives(program.lower(params, batch).compile().as_text())
    assert every > 0
    assert inside == 0
