# SPDX-License-Identifier: Apache-2.0
"""RDE's towers, heads, totals, gradients and steps against the official code's numbers.

The single losses are compared in tests/fmfa_jax/losses/test_triplet.py, the division in
test_rde_division.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmfa_jax import evaluation, models
from fmfa_jax.evaluation import SplitFeatures
from fmfa_jax.methods.method import with_rows
from fmfa_jax.methods.rde.method import STATISTICS, WEIGHTS
from fmfa_jax.models import selection
from fmfa_jax.training.gradients import loss_and_gradient
from fmfa_jax.training.optimizer import AdamOptions, make_optimizer
from tests.rde_case import rde_batch, rde_method
from tests.reference_case import place, reference_case

CASE = reference_case("float32", "rde")
BOTH, TSE = (("bge", 1.0), ("tse", 1.0)), (("bge", 0.0), ("tse", 1.0))


def distance(ours, reference) -> float:
    """Relative difference, norm-wise, in float64."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    return np.linalg.norm(ours - reference) / np.linalg.norm(reference)


def assert_near(ours, reference, tolerance, name=""):
    """Norm-wise; what is 0 in exact arithmetic by its size alone."""
    if np.linalg.norm(reference) < 1e-10:
        assert np.abs(ours).max() < 1e-6, name
    else:
        assert distance(ours, reference) < tolerance, name


@functools.cache
def compiled(batch_norm, losses):
    """The function (params, batch, weights) -> ((total, Measured), gradient)."""
    method = rde_method(CASE, batch_norm=batch_norm, losses=dict(losses))
    both = loss_and_gradient(method, chunks=1, mesh=method.mesh)

    @jax.jit
    def run(params, batch, weights):
        return both(params, batch, jax.random.key(0), {WEIGHTS: weights})

    return run


def gradient(params, batch, weights, *, batch_norm="batch", losses=BOTH):
    return compiled(batch_norm, losses)(params, batch, jnp.float32(weights))


@functools.cache
def trained_once(batch_norm="batch", losses=BOTH, weights="ones"):
    kept = {"ones": np.ones(8), "some": CASE.arrays["in/label_hat"]}[weights]
    options = {"batch_norm": batch_norm, "losses": losses}
    return jax.device_get(gradient(CASE.params, rde_batch(CASE), kept, **options))


@functools.cache
def forward():
    """The towers' outputs and their attention."""

    @jax.jit
    def run(params, images, ids):
        model = models.bind(CASE.config, params)
        image = model.image_tower.attended(models.normalize_images(images))
        text = model.text_tower.attended(ids)
        return {"image": image, "text": text}

    inputs = CASE.arrays["in/images"], CASE.arrays["in/caption_ids"]
    return run(CASE.params, *inputs)


def test_tokens_and_globals():
    ids = jnp.asarray(CASE.arrays["in/caption_ids"])
    for side, (tokens, _) in forward().items():
        assert distance(tokens, CASE.arrays[f"out/{side}_tokens"]) < 1e-5
    image = models.global_image(forward()["image"][0])
    text = models.global_text(forward()["text"][0], ids)
    assert distance(image, CASE.arrays["out/image_global"]) < 1e-5
    assert distance(text, CASE.arrays["out/text_global"]) < 1e-5


def test_one_row_of_attention():
    end = CASE.arrays["in/caption_ids"].argmax(axis=1)
    rows = {"image": np.zeros(8, int), "text": end}
    for side, (_, attention) in forward().items():
        whole = CASE.arrays[f"out/{side}_attention"]
        reference = whole[np.arange(8), rows[side]]
        np.testing.assert_allclose(attention, reference, rtol=0, atol=1e-6)
        assert not np.asarray(attention)[reference == 0].any()


def test_what_is_selected():
    (_, image), (_, text) = forward().values()
    ids = jnp.asarray(CASE.arrays["in/caption_ids"])
    scores = {
        "image": selection.patch_scores(image),
        "text": selection.word_scores(text, ids),
    }
    for side, ranked in scores.items():
        reference = CASE.arrays[f"tse/{side}_attention_row"]
        np.testing.assert_allclose(ranked, reference, rtol=0, atol=1e-6)
        topk = CASE.arrays[f"tse/{side}_topk"]
        first = np.argsort(-ranked, axis=1, kind="stable")[:, : topk.shape[1]]
        np.testing.assert_array_equal(first, topk)
    assert selection.selected_count(18, 0.3) == CASE.arrays["tse/image_topk"].shape[1]


@pytest.mark.parametrize(
    ("positions", "ratio", "count"), [(100, 0.29, 28), (200, 0.58, 115), (50, 0.58, 28)]
)
def test_the_count_is_rounded_down_as_python_does(positions, ratio, count):
    assert selection.selected_count(positions, ratio) == count


@functools.cache
def encoded():
    """What the method's `encode` gives: features and notes."""
    method, batch = rde_method(CASE), with_rows(rde_batch(CASE))
    return jax.jit(method.encode)(CASE.params, batch, jax.random.key(0))


@pytest.mark.parametrize(("statistics", "name"), [("kept", "eval"), ("batch", "train")])
def test_selection_embeddings(statistics, name):
    features, notes = encoded()
    np.testing.assert_array_equal(notes["words"], CASE.arrays["tse/text_lengths"])
    heads = models.bind(CASE.config, CASE.params).tse
    for side, tokens in (("image", "patches"), ("text", "words")):
        selected = selection.Selected(features[tokens], notes[tokens])
        embed = jax.jit(functools.partial(getattr(heads, side), statistics=statistics))
        ours = embed(selected).features
        assert distance(ours, CASE.arrays[f"{name}/{side}_tse"]) < 1e-5


@pytest.mark.parametrize(
    ("case", "batch_norm", "weights"),
    [
        ("train", "batch", "ones"),
        ("train_some", "batch", "some"),
        ("train_frozen", "frozen", "ones"),
    ],
)
def test_totals_and_gradients(case, batch_norm, weights):
    (total, measured), grads = trained_once(batch_norm, BOTH, weights)
    reference = CASE.group(case)
    assert distance(total, reference["total"]) < 1e-5
    for term in ("bge", "tse"):
        assert distance(measured.scalars[term], reference[f"{term}_loss"]) < 1e-5
    suffix = case.removeprefix("train")
    for name, norm in CASE.group(f"gradnorm{suffix}").items():
        ours = np.linalg.norm(place(name).to_official(grads).astype(np.float64))
        assert_near(ours, norm, 1e-4, name)
    for name, reference in CASE.group(f"grad{suffix}").items():
        assert_near(place(name).to_official(grads), reference, 1e-4, name)
    for side in ("image", "text"):
        norm = grads["tse"][side]["norm"]
        assert not norm["mean"].any() and not norm["variance"].any()


def test_gradients_of_single_losses():
    _, whole = trained_once()
    _, tse = trained_once(losses=TSE)
    apart = {"tse_loss": tse, "bge_loss": jax.tree.map(np.subtract, whole, tse)}
    for term, grads in apart.items():
        for name, reference in CASE.group(f"grad_of/{term}").items():
            assert_near(place(name).to_official(grads), reference, 1e-4, name)


def assert_statistics(params, reference):
    assert len(reference) == 4
    for name, wanted in reference.items():
        ours = place(name).to_official(params)
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6, err_msg=name)


def first_norms(arrays):
    """Without the batch norm that is never called."""
    return {name: value for name, value in arrays.items() if ".bns.0." in name}


def test_running_statistics():
    (_, measured), _ = trained_once()
    method, state = rde_method(CASE, batch_norm="batch"), {"params": CASE.params}
    after = method.advance(state, measured.update, jnp.asarray(True))["params"]
    assert_statistics(after, first_norms(CASE.group("bn_after_one")))
    kept = method.advance(state, measured.update, jnp.asarray(False))["params"]
    jax.tree.map(np.testing.assert_array_equal, kept, CASE.params)
    (_, measured), _ = trained_once("frozen")
    assert rde_method(CASE).advance(state, measured.update, jnp.asarray(True)) == {}


def adam(name):
    """Parameters after three steps of the file's uniform or grouped Adam."""
    method = rde_method(CASE, batch_norm="batch")
    own, options, rate = method.parameter_group, AdamOptions(groups="irra"), 1e-5
    if name == "adam":
        rate, options = float(CASE.arrays["adam/lr"]), AdamOptions()

        def own(path):  # all in one group but the statistics, which are not learned
            return (0.0, False) if path.endswith(STATISTICS) else None

    optimizer = make_optimizer(lambda step: rate, options, own_group=own)

    @jax.jit
    def update(grads, state, params, moments):
        updates, state = optimizer.update(grads, state, params)
        new = {"params": optax.apply_updates(params, updates)}
        new |= method.advance(new, moments, jnp.asarray(True))
        return new["params"], state

    params, state = CASE.params, optimizer.init(CASE.params)
    for step in range(3):
        (total, measured), grads = gradient(params, rde_batch(CASE), np.ones(8))
        assert distance(total, CASE.arrays[f"{name}/loss_{step}"]) < 1e-4
        params, state = update(grads, state, params, measured.update)
    (total, _), _ = gradient(params, rde_batch(CASE), np.ones(8))
    assert distance(total, CASE.arrays[f"{name}/loss_3"]) < 1e-4
    return jax.device_get(params)


def test_three_steps_of_adam_in_one_group():
    params = adam("adam")
    for name, reference in CASE.group("adam/param").items():
        ours = place(name).to_official(params)
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5, err_msg=name)
    assert_statistics(params, CASE.group("adam/bn"))


def test_three_steps_of_adam_in_the_published_groups():
    params = adam("adam_groups")
    for name, reference in CASE.group("adam_groups/delta").items():
        before = place(name).to_official(CASE.params)
        ours = place(name).to_official(params) - before
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-6, err_msg=name)
    assert_statistics(params, CASE.group("adam_groups/bn"))


@pytest.mark.parametrize("loss", ["TAL", "TRL", "InfoNCE", "SDM"])
def test_the_losses_that_the_division_sees(loss):
    """Statistics of earlier batches, no gradient; official names of our losses."""
    name = {"InfoNCE": "itc"}.get(loss, loss.lower())
    method, reference = rde_method(CASE, loss=name), CASE.group(f"ccd_pass/{loss}")
    features, notes = encoded()
    measure = jax.jit(functools.partial(method.pair_losses, statistics="kept"))
    losses, _ = measure(features, notes, rde_batch(CASE), CASE.params)
    tolerance = 1e-4 if loss == "SDM" else 1e-5
    assert distance(losses["bge"], reference["lossA"]) < tolerance
    assert distance(losses["tse"], reference["lossB"]) < tolerance


def test_similarities_and_metrics():
    sim, model = CASE.group("sim"), models.Retriever(CASE.config, CASE.params)
    features = SplitFeatures(
        image=np.asarray(model.encode_image(sim["images"])),
        image_person=sim["image_pids"],
        text=np.asarray(model.encode_text(sim["caption_ids"])),
        text_person=sim["caption_pids"],
    )
    parts = models.feature_parts(CASE.config)
    for name, part in (parts | {"BGE+TSE": slice(None)}).items():
        text, image = features.text[:, part], features.image[:, part]
        scale = 1 if name == "BGE+TSE" else 2
        np.testing.assert_allclose(scale * text @ image.T, sim[name], rtol=0, atol=2e-6)
    measured, _ = evaluation.measure(features, parts=parts)
    for name, ours in {"BGE+TSE": measured.t2i, **measured.parts}.items():
        r1, r5, r10, mean_ap, mean_inp, _ = sim[f"metrics/{name}"]
        np.testing.assert_allclose(
            [ours.r1, ours.r5, ours.r10, ours.mAP, ours.mINP],
            [r1, r5, r10, mean_ap, mean_inp],
            atol=1e-4,
        )


@jax.jit
def embedded_texts(ids):
    model = models.bind(CASE.config, CASE.params)
    _, words = model.selected_texts(ids)
    return model.tse.text(words).features, words.count


def test_an_exclamation_mark_is_taken_for_padding():
    quirk = CASE.group("quirk/zero_id")
    ours, count = embedded_texts(quirk["caption_ids"])
    np.testing.assert_array_equal(count, quirk["text_lengths"])
    assert distance(ours, quirk["text_tse"]) < 1e-5


def test_an_empty_caption_is_finite_and_changes_no_other():
    """Officially it and all rows below it are NaN."""
    ids = CASE.arrays["quirk/empty/caption_ids"]
    ours, count = embedded_texts(ids)
    assert np.isfinite(ours).all()
    assert count.tolist() == [5, 1, 6, 4]
    order = np.array([0, 2, 3, 0])
    again, _ = embedded_texts(ids[order])
    np.testing.assert_allclose(ours[order], again, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_norm", ["frozen", "batch"])
@pytest.mark.parametrize("case", ["empty captions", "one person", "nothing kept"])
def test_degenerate_batches_train(case, batch_norm):
    tokens = np.zeros_like(CASE.arrays["in/caption_ids"])
    tokens[:, 0], tokens[:, 1] = CASE.config.vocab_size - 2, CASE.config.vocab_size - 1
    changes = {
        "empty captions": {"tokens": tokens},
        "one person": {"person": np.zeros(8, np.int32)},
        "nothing kept": {},
    }[case]
    weights = np.full(8, float(case != "nothing kept"))
    batch = rde_batch(CASE, **changes)
    (total, _), grads = gradient(CASE.params, batch, weights, batch_norm=batch_norm)
    assert np.isfinite(total)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    if case == "nothing kept":
        assert total == 0 and not any(leaf.any() for leaf in jax.tree.leaves(grads))
