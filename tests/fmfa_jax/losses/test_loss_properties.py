# SPDX-License-Identifier: Apache-2.0
"""What holds of every loss, on any batch: a table of losses and a few properties."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from fmfa_jax import losses
from fmfa_jax.losses.links import Mined
from tests.properties import TRIES, features, holds, people

B, D, N, L, K, V = 6, 8, 5, 4, 3, 7
Batch = dict[str, Any]
FEATURES = ("image", "text", "patches", "words", "head")
"""What carries a gradient."""
ROWS = ("image", "text", "patches", "words", "mask", "labels", "person", "index")
"""What has one entry for each pair."""
# XLA sums up a log-softmax in an order of its own: of a match without rivals it may be
# above 0 by rounding (3e-13 was seen).
ROUNDING = -1e-6


@dataclass(frozen=True)
class Loss:
    """A loss and which general properties it has by its definition.

    Attributes:
        of: From a batch to a scalar, or to a value for each pair.
        uses: What it reads of a batch.
        directions: Only the directions of the features count, not their lengths.
        mirrored: Pictures and captions may change places.
        ordered: Depends on which pair comes first.
        named: Depends on what the persons are called.
        least: Its smallest value.
    """

    of: Callable[[Batch], Any]
    uses: tuple[str, ...] = ("image", "text", "person")
    directions: bool = True
    mirrored: bool = True
    ordered: bool = False
    named: bool = False
    least: float = ROUNDING


def of_pairs(loss: Callable[..., Any], **options: Any) -> Callable[[Batch], Any]:
    """A loss of both sides' features and persons."""
    return lambda x: loss(x["image"], x["text"], x["person"], **options)


def of_tokens(x: Batch, **options: Any) -> Any:
    rest = {"person": x["person"], "text_mask": x["mask"]}
    return losses.efa(x["words"], x["patches"], **rest, **options)


def of_links(x: Batch, **options: Any) -> Any:
    """The rows that were mined for a pair are pairs of the batch."""
    slot = (x["index"][:, None] + jnp.arange(1, K + 1)) % B
    order = jnp.argsort(x["index"])
    image, text = (jax.lax.stop_gradient(x[side])[order] for side in ("image", "text"))
    similarity = losses.cosines(x["image"], image)
    similarity = jnp.take_along_axis(similarity, slot, axis=1)
    valid = similarity > 0
    mined = Mined(jnp.where(valid, similarity, -jnp.inf), slot, valid)
    rows = image[slot], text[slot]
    pairs = x["image"], x["text"], mined, *rows
    return losses.global_loss(*pairs, index=x["index"], **options)


def of_words(x: Batch) -> Any:
    hidden = x["words"]
    found = losses.word_losses(lambda h, r: r @ h.T, x["head"], hidden, x["labels"])
    return losses.labelled_mean(found, x["labels"])


def of_all_words(x: Batch) -> Any:
    found = losses.token_losses(x["words"] @ x["head"].T, x["labels"])
    return losses.labelled_mean(found, x["labels"])


TOKENS = ("patches", "words", "person", "mask")
WORDS = ("words", "head", "labels")
# The reverse KL of a distribution from one that is 1e-8 or 1e-6 short of it.
ALMOST = -1e-4
LOSSES = {
    "sdm": Loss(of_pairs(losses.sdm), least=ALMOST),
    # Weighs by the person's first column.
    "a-sdm official": Loss(
        of_pairs(losses.sdm, weight="official"), least=ALMOST, ordered=True
    ),
    "a-sdm paper": Loss(of_pairs(losses.sdm, weight="paper"), least=ALMOST),
    "a-sdm plus": Loss(of_pairs(losses.pair_sdm, weight="plus"), least=ALMOST),
    "itc": Loss(lambda x: losses.itc(x["image"], x["text"])),
    "itc of people": Loss(lambda x: losses.pair_itc(*_sides(x), person=x["person"])),
    # Projections keep one side's length; its target does not sum to 1.
    "cmpm": Loss(of_pairs(losses.cmpm), directions=False, least=-10),
    "tal": Loss(of_pairs(losses.tal)),
    "trl": Loss(of_pairs(losses.trl)),
    "identity": Loss(
        lambda x: losses.identity_loss(x["image"], x["text"], x["person"]),
        directions=False,
        named=True,
    ),
    "local": Loss(lambda x: losses.local_loss(*_sides(x)), least=ALMOST),
    "local of pictures": Loss(
        lambda x: losses.local_loss(*_sides(x), image_id=x["person"]), least=ALMOST
    ),
    "global": Loss(of_links, ("image", "text", "index"), least=ALMOST, mirrored=False),
    "global plus": Loss(
        partial(of_links, rows="batch", targets="union"),
        ("image", "text", "index"),
        least=ALMOST,
        mirrored=False,
    ),
    # Sums of log-sum-exps of gaps, which may be below 0.
    "efa official": Loss(of_tokens, TOKENS, directions=False, least=-10),
    "efa plus": Loss(
        partial(of_tokens, rule="plus"), TOKENS, directions=False, least=-1e-4
    ),
    "masked words": Loss(of_words, WORDS, directions=False),
    "masked words at once": Loss(of_all_words, WORDS, directions=False),
}
ANY = pytest.mark.parametrize("name", LOSSES)


def _sides(x: Batch) -> tuple[Any, Any]:
    return x["image"], x["text"]


@cache
def compiled(name: str) -> Callable[[Batch, Batch], tuple[Any, Any, Batch]]:
    """The loss as a scalar, as it is, and its gradient."""
    loss = LOSSES[name].of

    def total(learned: Batch, rest: Batch) -> tuple[Any, Any]:
        found = loss(rest | learned)
        return jnp.mean(found), found

    value = jax.value_and_grad(total, has_aux=True)

    def measured(learned: Batch, rest: Batch) -> tuple[Any, Any, Batch]:
        (scalar, found), gradient = value(learned, rest)
        return scalar, found, gradient

    return jax.jit(measured)


def measure(name: str, batch: Batch) -> tuple[float, np.ndarray, Batch]:
    """Value, values and gradient on the host, in float32."""
    used = {key: batch[key] for key in LOSSES[name].uses}
    learned = {key: used.pop(key) for key in FEATURES if key in used}
    scalar, found, gradient = jax.device_get(compiled(name)(learned, used))
    wide = {key: np.asarray(value, np.float32) for key, value in gradient.items()}
    return float(scalar), np.asarray(found, np.float32), wide


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """A batch of any content and one shape; some captions have no word."""
    lengths = draw(st.lists(st.integers(0, L), min_size=B, max_size=B))
    labels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, V, (B, L))
    asked = np.arange(L) < np.array(lengths)[:, None]
    return {
        "image": draw(features(B, D)),
        "text": draw(features(B, D)),
        "patches": draw(features(B * N, D)).reshape(B, N, D),
        "words": draw(features(B * L, D)).reshape(B, L, D),
        "head": np.random.default_rng(0).normal(size=(V, D)).astype(np.float32),
        "mask": asked,
        "labels": np.where(asked, labels, 0).astype(np.int32),
        "person": draw(people(B)),
        "index": np.arange(B, dtype=np.int32),
    }


def test_every_loss_is_in_the_table():
    text = Path(__file__).read_text()
    assert [name for name in losses.__all__ if f"losses.{name}" not in text] == []


def assert_close(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@TRIES
@ANY
def test_value_and_gradient_are_finite(name, tries):
    def check(batch):
        value, found, gradient = measure(name, batch)
        assert np.isfinite(found).all() and value >= LOSSES[name].least
        for key, slope in gradient.items():
            assert np.isfinite(slope).all(), key

    holds(check, tries, batch=batches())


@TRIES
@ANY
def test_bfloat16_features_give_the_loss_of_the_same_numbers(name, tries):
    """Losses widen what they get: only what the towers round is lost."""

    def check(batch):
        narrow = {
            key: jnp.asarray(value, jnp.bfloat16) if key in FEATURES else value
            for key, value in batch.items()
        }
        if "masked" in name:  # the head's product is the model's own
            narrow["head"] = batch["head"]
        exact = {
            key: np.asarray(value, np.float32) if key in FEATURES else value
            for key, value in narrow.items()
        }
        value, found, gradient = measure(name, narrow)
        assert np.isfinite(value)
        assert all(np.isfinite(slope).all() for slope in gradient.values())
        assert_close(found, measure(name, exact)[1])

    holds(check, tries, batch=batches())


@TRIES
@ANY
def test_the_order_of_the_pairs_does_not_matter(name, tries):
    if LOSSES[name].ordered:
        pytest.skip("by its definition it does")

    def check(batch, order):
        moved = {k: v[list(order)] if k in ROWS else v for k, v in batch.items()}
        found, other = measure(name, batch)[1], measure(name, moved)[1]
        assert_close(other, found[list(order)] if found.ndim else found)

    holds(check, tries, batch=batches(), order=st.permutations(range(B)))


@TRIES
@ANY
def test_names_of_people_and_lengths_of_features_do_not_matter(name, tries):
    """Lengths where the definition takes cosines."""
    loss = LOSSES[name]

    def check(batch, names, lengths):
        other = dict(batch)
        if not loss.named:
            other["person"] = np.array(names, np.int32)[batch["person"]]
        if loss.directions:
            scale = np.float32(2.0) ** np.array(lengths, np.float32)
            other["image"] = batch["image"] * scale[:B, None]
            other["text"] = batch["text"] * scale[B:, None]
        assert_close(measure(name, other)[1], measure(name, batch)[1])

    ids = st.lists(st.integers(0, 2**31 - 1), min_size=B, max_size=B, unique=True)
    shifts = st.lists(st.integers(-8, 8), min_size=2 * B, max_size=2 * B)
    holds(check, tries, batch=batches(), names=ids, lengths=shifts)


@TRIES
@ANY
def test_pictures_and_captions_may_change_places(name, tries):
    loss = LOSSES[name]
    if not loss.mirrored or "image" not in loss.uses:
        pytest.skip("the two sides do different things")

    def check(batch):
        other = batch | {"image": batch["text"], "text": batch["image"]}
        assert_close(measure(name, other)[1], measure(name, batch)[1])

    holds(check, tries, batch=batches())


@TRIES
@pytest.mark.parametrize("name", ["a-sdm plus", "itc of people", "tal", "trl"])
def test_copies_of_a_pair_have_the_same_loss(name, tries):
    """Those that give a value for each pair."""

    def check(batch):
        copied = {
            k: v[[0, 1, 0, 3, 1, 0]] if k in ROWS else v for k, v in batch.items()
        }
        found = measure(name, copied)[1]
        assert_close(found[[2, 4, 5]], found[[0, 1, 0]])

    holds(check, tries, batch=batches())
