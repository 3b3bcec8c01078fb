# SPDX-License-Identifier: Apache-2.0
"""Augmentation and masking: their statistics, and independence of device counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fmfa_jax.machines.mesh import BATCH_AXES, make_mesh
from fmfa_jax.methods.views import (
    Augmentation,
    augment_images,
    content_mask,
    edit_tokens,
    erase_box,
    mask_capacity,
    mask_tokens,
    random_crop,
    row_numbers,
)
from fmfa_jax.models import IMAGE_MEAN, IMAGE_STD, normalize_images

KEY = jax.random.key(3)
MASK, START, END = 97, 98, 99


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 256, (8, 24, 12, 3), dtype=np.uint8))


def test_no_augmentation_is_normalisation(images):
    view = augment_images(KEY, images, Augmentation(flip=0.0, pad=0, erase=0.0))
    np.testing.assert_array_equal(view, normalize_images(images))
    want = (np.asarray(images) / 255 - np.array(IMAGE_MEAN)) / np.array(IMAGE_STD)
    np.testing.assert_allclose(view, want, atol=2e-6)


def test_flip_mirrors_columns(images):
    view = augment_images(KEY, images, Augmentation(flip=1.0, pad=0, erase=0.0))
    np.testing.assert_array_equal(view, normalize_images(images[:, :, ::-1]))


def test_crop_is_a_window_of_the_padded_image(images):
    image = np.asarray(images[0])
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = {
        padded[y : y + 24, x : x + 12].tobytes() for y in range(5) for x in range(5)
    }
    numbers = jax.random.uniform(KEY, (400, 2))
    crops = jax.vmap(lambda n: random_crop(n, images[0], 2))(numbers)
    seen = {np.asarray(crop).tobytes() for crop in crops}
    assert seen == windows


def test_erased_boxes_keep_area_and_ratio():
    top, left, h, w = map(
        np.asarray,
        jax.vmap(lambda n: jnp.stack(erase_box(n, 384, 128)))(
            jax.random.uniform(KEY, (4000, 22))
        ).T,
    )
    real = h > 0
    assert real.mean() > 0.99
    assert (top >= 0).all() and (top + h <= 384).all()
    assert (left >= 0).all() and (left + w <= 128).all()
    share = (h * w / (384 * 128))[real]
    ratio = (h / np.maximum(w, 1))[real]
    # Rounding to whole pixels moves the limits by less than three per cent here.
    assert 0.019 < share.min() < 0.03 and 0.35 < share.max() < 0.41
    assert 0.29 < ratio.min() < 0.45 and 2.6 < ratio.max() < 3.4
    assert (h < 384).all() and (w < 128).all()


def test_erasing_fills_with_the_mean_vector_in_normalised_space(images):
    plain = np.asarray(normalize_images(images))
    view = np.asarray(
        augment_images(KEY, images, Augmentation(flip=0.0, pad=0, erase=1.0))
    )
    changed = (view != plain).any(-1)
    assert changed.any(axis=(1, 2)).all()
    np.testing.assert_array_equal(
        view[changed], np.broadcast_to(np.float32(IMAGE_MEAN), view[changed].shape)
    )


def test_half_of_the_images_are_erased_and_flipped():
    images = jnp.tile(
        jnp.arange(12, dtype=jnp.uint8)[None, None, :, None], (2000, 6, 1, 3)
    )
    view = augment_images(KEY, images, Augmentation(flip=0.5, pad=0, erase=0.0))
    flipped = np.asarray(view[:, 0, 0, 0] > view[:, 0, -1, 0])
    assert abs(flipped.mean() - 0.5) < 0.05


def test_a_view_does_not_depend_on_the_devices(images):
    def view(x):
        return augment_images(KEY, x, Augmentation(flip=0.5, pad=3, erase=0.5))

    want = jax.jit(view)(images)
    for count in (2, 8):
        mesh = make_mesh(devices=jax.devices()[:count])
        rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
        got = jax.jit(view)(jax.device_put(images, rows))
        np.testing.assert_array_equal(got, want)


def captions(rows=3000, length=20):
    rng = np.random.default_rng(1)
    tokens = np.zeros((rows, length), np.int32)
    for row in tokens:
        words = rng.integers(3, length - 1)
        row[0], row[words + 1] = START, END
        row[1 : words + 1] = rng.integers(1, MASK, words)
    return jnp.asarray(tokens)


def test_bert_masking_has_the_stated_shares():
    tokens = np.asarray(captions())
    masked, labels = map(
        np.asarray, mask_tokens(KEY, jnp.asarray(tokens), rate=0.15, mask_id=MASK)
    )
    ordinary = (tokens > 0) & (tokens < MASK)
    chosen = labels != 0
    assert not (chosen & ~ordinary).any()
    np.testing.assert_array_equal(labels[chosen], tokens[chosen])
    np.testing.assert_array_equal(masked[~chosen], tokens[~chosen])
    assert chosen.any(axis=1).all(), "at least one token of each caption is hidden"
    # Position 1 is also forced, so the share is measured away from it.
    rest = chosen[:, 2:]
    assert rest.sum() / ordinary[:, 2:].sum() == pytest.approx(0.15, abs=0.01)
    hidden, label = masked[:, 2:][rest], labels[:, 2:][rest]
    assert (hidden == MASK).mean() == pytest.approx(0.8, abs=0.02)
    random_word = (hidden != MASK) & (hidden != label)
    assert random_word.mean() == pytest.approx(0.1, abs=0.02)
    assert hidden[random_word].min() >= 1 and hidden[random_word].max() < MASK


def test_weak_masking_hides_half_and_position_one():
    tokens = np.asarray(captions())
    masked, labels = map(
        np.asarray,
        mask_tokens(KEY, jnp.asarray(tokens), rate=0.5, mask_id=MASK, rule="mask"),
    )
    assert (masked[:, 1] == MASK).all()
    chosen = labels != 0
    assert (masked[chosen] == MASK).all()
    ordinary = (tokens > 0) & (tokens < MASK)
    share = chosen[:, 2:].sum() / ordinary[:, 2:].sum()
    assert share == pytest.approx(0.5, abs=0.01)
    free, _ = mask_tokens(
        KEY, jnp.asarray(tokens), rate=0.5, mask_id=MASK, rule="mask_free"
    )
    assert 0.4 < float((free[:, 1] == MASK).mean()) < 0.6


@pytest.mark.parametrize("rule", ["bert", "mask", "mask_free"])
def test_an_empty_caption_keeps_its_end_token(rule):
    empty = jnp.asarray([[START, END, 0, 0]], jnp.int32)
    masked, labels = mask_tokens(KEY, empty, rate=0.99, mask_id=MASK, rule=rule)
    np.testing.assert_array_equal(masked, empty)
    assert not labels.any()


def test_unknown_mask_rule_is_refused():
    with pytest.raises(ValueError, match=r"rule='brt'.*mean bert.*mask_free"):
        mask_tokens(KEY, captions(2), rate=0.1, mask_id=MASK, rule="brt")


def slow_edit(row, what, word, *, mask, replace, remove):
    """One caption, one token at a time, as a list of Python."""
    edited = []
    for token, x, y in zip(row, what, word, strict=True):
        if not 0 < token < MASK or x >= mask + replace + remove:
            edited.append(token)
        elif x < mask:
            edited.append(MASK)
        elif x < mask + replace:
            edited.append(1 + min(int(y * (MASK - 1)), MASK - 2))
    return edited + [0] * (len(row) - len(edited))


def test_edited_captions_equal_a_loop():
    tokens = np.asarray(captions(300))
    rates = {"mask": 0.3, "replace": 0.2, "remove": 0.25}
    edited = edit_tokens(KEY, jnp.asarray(tokens), mask_id=MASK, **rates)
    what, word = np.split(np.asarray(row_numbers(KEY, jnp.arange(300), 40)), 2, axis=1)
    wanted = [slow_edit(*row, **rates) for row in zip(tokens, what, word, strict=True)]
    np.testing.assert_array_equal(edited, wanted)


def test_editing_has_the_stated_shares():
    """Position 0 is the start, so what becomes of a word is counted in words of 5."""
    tokens = np.full((4000, 40), 5, np.int32)
    tokens[:, 0], tokens[:, -1] = START, END
    edited = np.asarray(edit_tokens(KEY, jnp.asarray(tokens), mask_id=MASK))
    words = 4000 * 38
    assert (edited == START).sum() == (edited == END).sum() == 4000
    shares = {"mask": (edited == MASK).sum(), "remove": (edited == 0).sum()}
    shares["replace"] = ((edited > 0) & (edited < MASK) & (edited != 5)).sum()
    assert shares["mask"] / words == pytest.approx(0.12, abs=0.004)
    assert shares["remove"] / words == pytest.approx(0.04, abs=0.003)
    # One random word in 96 is the old one.
    assert shares["replace"] / words == pytest.approx(0.04 * 95 / 96, abs=0.003)
    drawn = edited[(edited > 0) & (edited < MASK) & (edited != 5)]
    assert set(drawn) == set(range(1, MASK)) - {5}


def test_an_edit_leaves_the_end_token_and_can_take_all_words():
    rows = jnp.asarray([[START, END, 0, 0], [START, 3, 4, END]], jnp.int32)
    edited = edit_tokens(KEY, rows, mask_id=MASK, mask=0.0, replace=0.0, remove=1.0)
    np.testing.assert_array_equal(edited, [[START, END, 0, 0]] * 2)


def test_an_edit_does_not_depend_on_padding_that_was_cut_off():
    def edited(tokens):
        rates = {"mask": 0.2, "remove": 0.3}
        out = edit_tokens(KEY, tokens, mask_id=MASK, context_length=30, **rates)
        return np.asarray(out)

    long = jnp.pad(captions(50), ((0, 0), (0, 10)))
    np.testing.assert_array_equal(edited(long)[:, :20], edited(long[:, :20]))


def test_capacity_holds_what_masking_chooses():
    tokens = jnp.full((4000, 77), 5, jnp.int32)
    _, labels = mask_tokens(KEY, tokens, rate=0.15, mask_id=MASK)
    assert int((labels != 0).sum(axis=1).max()) <= mask_capacity(77, 0.15) < 77


def test_content_excludes_padding_start_and_end():
    row = jnp.asarray([[START, 4, MASK, END, 0]], jnp.int32)
    want = [[False, True, True, False, False]]
    np.testing.assert_array_equal(content_mask(row, start_id=START), want)
