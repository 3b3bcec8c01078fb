# SPDX-License-Identifier: Apache-2.0
"""The weak method's losses against the official numbers, by hand and by loops."""

import inspect
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmfa_jax.losses import links, local_loss
from fmfa_jax.losses.links import confidence, local_relations, local_targets
from fmfa_jax.methods.weak import Recipe, WeakMethod, WeakOptions, memory, mining
from fmfa_jax.methods.weak.memory import init_bank, update_bank
from tests.tiny_model import TINY
from tests.weak_case import compare

REFERENCE = np.load(Path(__file__).parents[2] / "reference" / "weak.npz")
GROUPS = sorted({name.split("/")[0] for name in REFERENCE.files})
TERMS = ("itc", "local", "global", "consistency")
NAMES = {"fv": "image", "ft": "text", "fv_aug": "image_view", "ft_aug": "text_view"}
FEATURES = tuple(NAMES)


update = jax.jit(update_bank)


def filled(image, text):
    bank = init_bank(len(image), image.shape[1])
    index = jnp.arange(len(image))
    image, text = jnp.asarray(image), jnp.asarray(text)
    return update(bank, image, text, index, ready=False)


@jax.jit
def terms_and_gradients(features, index, bank):
    """{term: (loss, gradients)}, each term alone."""

    def loss(features, term):
        ours = {NAMES[name]: rows for name, rows in features.items()}
        return compare(ours, index, bank, {term: 1.0})[0]

    return {term: jax.value_and_grad(loss)(features, term) for term in TERMS}


def problem(group):
    """Features, index and bank of one group of the reference."""
    features = {name: REFERENCE[f"{group}/in/{name}"] for name in FEATURES}
    bank = filled(REFERENCE[f"{group}/in/mem_v"], REFERENCE[f"{group}/in/mem_t"])
    return features, REFERENCE[f"{group}/in/index"], bank


@pytest.fixture(scope="module", params=GROUPS)
def solved(request):
    """A group's name and what this code computes for it."""
    return request.param, terms_and_gradients(*problem(request.param))


def test_losses_are_the_official_ones(solved):
    group, results = solved
    for term in TERMS:
        wanted = float(REFERENCE[f"{group}/loss/{term}"])
        assert float(results[term][0]) == pytest.approx(wanted, rel=1e-5), term


def official_gradient(group, term, name):
    """That of one view's features in float64, or None: the term leaves them alone."""
    key = f"{group}/grad/{term}/{name}"
    return REFERENCE[key] if key in REFERENCE else None


@pytest.mark.parametrize("group", GROUPS)
def test_gradients_of_each_term_are_the_official_ones(group):
    features, index, bank = problem(group)
    with jax.enable_x64(True):
        exact = {
            name: jnp.asarray(rows, jnp.float64) for name, rows in features.items()
        }
        results = terms_and_gradients(exact, index, bank)
    compared = 0
    for term in TERMS:
        for name in FEATURES:
            got = np.asarray(results[term][1][name])
            assert got.dtype == np.float64
            wanted = official_gradient(group, term, name)
            if wanted is None:
                assert not got.any(), f"{term} {name}: no gradient was expected"
                continue
            error = np.linalg.norm(got - wanted)
            assert error <= 1e-6 * np.linalg.norm(wanted), (term, name)
            compared += 1
    assert compared == 8


def test_gradients_in_float32_are_the_official_ones(solved):
    """Of all terms, as training adds them up.

    That of the memory alone is a small difference of logarithms, and 1.0e-5 off in
    float32, a little more or less as the processor adds.
    """
    group, results = solved
    for name in FEATURES:
        got = sum(np.asarray(results[term][1][name], np.float64) for term in TERMS)
        found = [official_gradient(group, term, name) for term in TERMS]
        wanted = sum(each for each in found if each is not None)
        assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted), name


# Section 6 of the specification: angles in degrees, worked out by hand.
LIVE_IMAGE = ([0, 30, 100, 170], [1, 2, 3, 4])
LIVE_TEXT = ([0, 20, 60, 200], [4, 3, 2, 1])
MEMORY_TEXT = [5, 15, 65, 190, 40, 80, 220, 280]
MEMORY_A = [2, 28, 103, 172, 20, 96, 215, 300]
MEMORY_B = [12, 28, 103, 172, 1, 96, 215, 300]


def at_angles(degrees, norms=1.0):
    angle = np.deg2rad(np.asarray(degrees, np.float64))
    rows = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return jnp.asarray(rows * np.reshape(norms, (-1, 1)), jnp.float32)


@partial(jax.jit, static_argnames=("options", "terms"))
def by_hand(bank, options=None, terms=("global",)):
    image, text = at_angles(*LIVE_IMAGE), at_angles(*LIVE_TEXT)
    features = {"image": image, "text": text}
    weights = dict.fromkeys(terms, 1.0)
    return compare(features, jnp.arange(4), bank, weights, options=options)


def mined_by_hand():
    """The rows that mining links to the anchors of `by_hand`, whole."""
    bank = filled(at_angles(MEMORY_A), at_angles(MEMORY_TEXT))
    return mining.mine(bank, at_angles(*LIVE_IMAGE), jnp.arange(4))


def test_first_problem_by_hand():
    bank = filled(at_angles(MEMORY_A), at_angles(MEMORY_TEXT))
    loss, measured = by_hand(bank, terms=("itc", "local", "global"))
    scalars, records = measured.scalars, measured.records
    assert float(scalars["itc"]) == pytest.approx(0.6449724041, rel=1e-5)
    assert float(scalars["local"]) == pytest.approx(3.6663207706, rel=1e-5)
    assert float(scalars["global"]) == pytest.approx(9.1090491032, rel=1e-5)
    total = sum(float(scalars[name]) for name in ("itc", "local", "global"))
    assert float(loss) == pytest.approx(total, rel=1e-6)
    slots = [[4, 1, 7], [4, 0, 5], [5, 1, 3], [6, 2, 5]]
    np.testing.assert_array_equal(records["slot"], slots)
    valid = [[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]]
    np.testing.assert_array_equal(records["valid"], np.array(valid, bool))
    weights = [
        [0.6674424, 0.68578796, 0],
        [0.65735401, 0.69053728, 0],
        [0.50060899, 0, 0],
        [0.57270429, 0, 0],
    ]
    np.testing.assert_allclose(confidence(mined_by_hand()), weights, rtol=1e-5)
    assert float(scalars["links_per_anchor"]) == 1.5
    assert float(scalars["linked_share"]) == pytest.approx(2 / 12)


def test_first_row_of_the_local_target():
    relations = local_relations(at_angles(*LIVE_IMAGE), at_angles(*LIVE_TEXT))
    target = jax.nn.softmax(local_targets(relations), axis=1)[0]
    np.testing.assert_allclose(target, [0.7109495, 0.2890505, 0, 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("memory", "exclude", "rows", "wanted"),
    [
        (MEMORY_A, "rank0", "batch", 9.4182760162),
        (MEMORY_B, "rank0", "all", 8.8125565304),
        (MEMORY_B, "rank0", "batch", 8.2297514366),
        (MEMORY_B, "self", "all", 9.0415232251),
        (MEMORY_B, "self", "batch", 8.6509243304),
    ],
)
def test_global_by_hand(memory, exclude, rows, wanted):
    bank = filled(at_angles(memory), at_angles(MEMORY_TEXT))
    _, measured = by_hand(bank, WeakOptions(rows=rows, exclude=exclude))
    assert float(measured.scalars["global"]) == pytest.approx(wanted, rel=1e-5)


def test_itc_is_the_sum_of_both_directions_in_the_paper():
    options = WeakOptions(itc_reduction="sum")
    loss, _ = by_hand(None, options, terms=("itc",))
    assert float(loss) == pytest.approx(1.2899448083, rel=1e-5)


def assert_same_losses(results, others):
    for term in TERMS:
        assert float(results[term][0]) == pytest.approx(
            float(others[term][0]), rel=2e-6
        ), term


def test_losses_do_not_see_the_length_of_a_feature():
    features, index, bank = problem("0")
    scale = np.random.default_rng(0).uniform(0.2, 5, (len(index), 1))
    longer = {k: (v * scale).astype(np.float32) for k, v in features.items()}
    assert_same_losses(
        terms_and_gradients(features, index, bank),
        terms_and_gradients(longer, index, bank),
    )


def test_losses_do_not_see_the_order_of_batch_or_memory():
    features, index, bank = problem("0")
    wanted = terms_and_gradients(features, index, bank)
    rng = np.random.default_rng(1)
    order = rng.permutation(len(index))
    shuffled = {name: rows[order] for name, rows in features.items()}
    assert_same_losses(wanted, terms_and_gradients(shuffled, index[order], bank))
    rows = REFERENCE["0/in/mem_v"], REFERENCE["0/in/mem_t"]
    place = rng.permutation(len(rows[0]))  # old row -> new row
    moved = [part[np.argsort(place)] for part in rows]
    other = terms_and_gradients(features, place[index].astype(np.int32), filled(*moved))
    assert_same_losses(wanted, other)


def test_relations_are_symmetric_with_a_true_diagonal():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(12, 3)).astype(np.float32)
    rows[3] = 0  # even a row without a direction is its own mate
    relations = np.asarray(local_relations(jnp.asarray(rows), jnp.asarray(rows)))
    np.testing.assert_array_equal(relations, relations.T)
    assert relations.diagonal().all()
    assert 12 < relations.sum() < 144
    image_id = jnp.asarray([0, 1, 2, 3, 4, 5, 0, 6, 7, 8, 9, 10])
    linked = np.asarray(
        local_relations(jnp.asarray(rows), jnp.asarray(rows), image_id=image_id)
    )
    wanted = relations.copy()
    wanted[0, 6] = wanted[6, 0] = True
    np.testing.assert_array_equal(linked, wanted)


def test_both_modalities_must_agree():
    near, far = at_angles([0, 10]), at_angles([0, 90])
    assert int(local_relations(near, near).sum()) == 4
    assert int(local_relations(near, far).sum()) == 2
    assert int(local_relations(far, near).sum()) == 2


def test_an_aligned_batch_has_the_known_local_loss():
    rows = jnp.eye(4)
    wanted = -2 * np.log(1 + 1e-6)
    assert float(local_loss(rows, rows)) == pytest.approx(wanted, rel=0.15, abs=0)


def test_a_threshold_above_one_links_nothing():
    bank = filled(at_angles(MEMORY_A), at_angles(MEMORY_TEXT))
    _, measured = by_hand(bank, WeakOptions(threshold=1.01))
    assert not measured.records["valid"].any()
    assert float(measured.scalars["links_per_anchor"]) == 0
    assert float(measured.scalars["linked_share"]) == 0


def test_no_gradient_reaches_the_memory():
    features, index, bank = problem("2")

    def loss(rows):
        ours = {NAMES[name]: features[name] for name in ("fv", "ft")}
        return compare(ours, index, bank | rows, {"global": 1.0})[0]

    inputs = {"image": bank["image"], "text": bank["text"]}
    features = jax.tree.map(jnp.asarray, features)
    index = jnp.asarray(index)
    value, gradients = jax.jit(jax.value_and_grad(loss))(inputs)
    assert float(value) > 0
    assert not any(np.asarray(part).any() for part in gradients.values())


@pytest.mark.parametrize("kind", ["zeros", "identical", "opposite"])
def test_degenerate_features_stay_finite(kind):
    _, index, bank = problem("0")
    shape = REFERENCE["0/in/fv"].shape
    rows = {"zeros": np.zeros, "identical": np.ones, "opposite": np.ones}[kind](shape)
    rows = rows.astype(np.float32)
    sign = -1 if kind == "opposite" else 1
    features = {n: rows * (sign if n.startswith("ft") else 1) for n in FEATURES}
    results = terms_and_gradients(features, index, bank)
    for leaf in jax.tree.leaves(results):
        assert np.isfinite(leaf).all()


def test_a_term_without_weight_is_not_computed():
    features, index, _ = problem("2")
    ours = {NAMES[name]: jnp.asarray(features[name]) for name in ("fv", "ft")}
    weights = {"itc": 2.0, "local": 0.0, "global": 0.0}
    total, measured = compare(ours, jnp.asarray(index), None, weights)
    assert set(measured.scalars) == {"itc", "linked_share"}
    assert measured.records is None and measured.update is None
    assert float(total) == 2 * float(measured.scalars["itc"])


def test_a_method_without_a_global_loss_has_no_memory():
    without = WeakMethod(TINY, Recipe(losses={"itc": 1.0}), pairs=8)
    assert without.initial_state() == {}
    with_memory = WeakMethod(TINY, Recipe(losses={"global": 1.0}), pairs=8)
    assert with_memory.initial_state()["memory"]["image"].shape == (256, 64)


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="did you mean consistency"):
        Recipe(losses={"consistancy": 1.0})
    with pytest.raises(ValueError, match=r"weak\.rows='al'.*all, batch"):
        WeakOptions(rows="al")
    with pytest.raises(ValueError, match=r"weak\.threshold: wanted -1 to 2, got nan"):
        WeakOptions(threshold=float("nan"))


def test_no_loss_takes_a_person():
    """Only the host's measurement of mined links may know persons."""
    for module in (links, memory, mining):
        for name, thing in vars(module).items():
            if inspect.isfunction(thing) and thing.__module__ == module.__name__:
                for parameter in inspect.signature(thing).parameters:
                    assert "person" not in parameter, name
                    assert "identity" not in parameter, name
    assert "person" not in WeakMethod.batch_keys
