# SPDX-License-Identifier: Apache-2.0
"""Word maps: the numbers against loops and torch, the pictures in grey."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.tokenizer import Word
from fmfa_jax import models
from fmfa_jax.figures import WordMaps, overlays, words, words_sheet, write_words
from fmfa_jax.losses.alignment import grouped_patches
from tests.tiny_model import tiny_model

LENGTH, PATCHES, WIDTH = 5, 8, 128
CONFIG = tiny_model(context_length=LENGTH, vocab_size=16, embed_dim=WIDTH, irr_layers=1)
CAPTION = (Word("re d", 1, 3), Word(",", 3, 4), Word("coat", 4, 5))


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    text = rng.normal(size=(LENGTH, WIDTH)).astype(np.float32)
    image = rng.normal(size=(1 + PATCHES, WIDTH)).astype(np.float32)
    return jnp.asarray(text), jnp.asarray(image)


@pytest.fixture(scope="module")
def interaction():
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: 0.3 * rng.standard_normal(x.shape, np.float32),
        models.param_shapes(CONFIG),
    )
    return models.bind(CONFIG, params).irr


def shares_by_hand(text, image, threshold):
    """One word and one patch at a time."""
    rows = []
    for word in np.asarray(text, np.float64):
        dots = [float(word @ patch) for patch in np.asarray(image, np.float64)[1:]]
        scaled = [(d - min(dots)) / (max(dots) - min(dots)) for d in dots]
        kept = [s if s > threshold else 0.0 for s in scaled]
        rows.append([s / sum(kept) for s in kept])
    return np.array(rows)


@pytest.mark.parametrize("rule, threshold", [("official", 1 / PATCHES), ("plus", 0.5)])
def test_shares_are_those_of_efa(tokens, rule, threshold):
    shares = words.word_patch_maps(*tokens, rule=rule)
    wanted = shares_by_hand(*tokens, threshold)
    np.testing.assert_allclose(shares, wanted, atol=1e-5)
    assert (wanted == 0).any() and ((shares == 0) == (wanted == 0)).all()
    text, patches = tokens[0], tokens[1][1:]
    groups = grouped_patches(text[None], patches[None], threshold=threshold)[0]
    np.testing.assert_allclose(shares @ patches, groups, atol=1e-5)


def test_a_word_that_finds_all_patches_equal_has_no_share(tokens):
    text = tokens[0].at[2].set(0)
    shares = words.word_patch_maps(text, tokens[1])
    assert not shares[2].any() and np.isfinite(shares).all()
    view = words.word_maps(text, tokens[1], (Word("red", 2, 3),))[0]
    assert view.strength[0] == 0


def test_an_unknown_rule_is_refused(tokens):
    with pytest.raises(ValueError, match="rule must be one of"):
        words.word_patch_maps(*tokens, rule="efa")


def test_attention_is_what_torch_computes(tokens, interaction):
    text, image = tokens
    qkv = interaction.cross_attention.qkv
    theirs = torch.nn.MultiheadAttention(WIDTH, WIDTH // 64, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.tensor(np.asarray(qkv.kernel[...]).T))
        theirs.in_proj_bias.copy_(torch.tensor(np.asarray(qkv.bias[...])))
        normed = [
            torch.nn.functional.layer_norm(
                torch.tensor(np.asarray(x)),
                (WIDTH,),
                torch.tensor(np.asarray(norm.scale[...])),
                torch.tensor(np.asarray(norm.bias[...])),
            )
            for norm, x in (
                (interaction.ln_text, text),
                (interaction.ln_image, image),
            )
        ]
        query, key = (x[None] for x in normed)
        _, weights = theirs(query, key, key, average_attn_weights=True)
    ours = np.asarray(words.cross_attention(interaction, text, image))
    np.testing.assert_allclose(ours, weights[0].numpy(), atol=1e-5)
    assert ours.max() > 1.5 / (1 + PATCHES)  # it is not an even spread


def test_pieces_of_a_word_are_averaged(tokens, interaction):
    similarity, attention = words.word_maps(*tokens, CAPTION, interaction=interaction)
    shares = np.asarray(words.word_patch_maps(*tokens))
    weights = np.asarray(words.cross_attention(interaction, *tokens))
    assert similarity.words == attention.words == ("re d", ",", "coat")
    for view, rows in ((similarity, shares), (attention, weights[:, 1:])):
        wanted = [(rows[1] + rows[2]) / 2, rows[3], rows[4]]
        np.testing.assert_allclose(view.patches, wanted, rtol=1e-6)
    text, patches = (np.asarray(x) for x in (tokens[0], tokens[1][1:]))
    groups = shares @ patches
    lengths = np.linalg.norm(text, axis=1) * np.linalg.norm(groups, axis=1)
    cosine = (text * groups).sum(1) / lengths
    wanted = [cosine[1:3].mean(), cosine[3], cosine[4]]
    np.testing.assert_allclose(similarity.strength, wanted, rtol=1e-4)
    entropy = -(weights * np.log(weights)).sum(1)
    focus = 1 - entropy / np.log(1 + PATCHES)
    wanted = [focus[1:3].mean(), focus[3], focus[4]]
    np.testing.assert_allclose(attention.strength, wanted, rtol=1e-3)
    assert words.word_maps(*tokens, CAPTION)[0].patches.shape == (3, PATCHES)


def test_a_word_finds_the_patch_that_it_equals(tokens):
    text, image = tokens
    text = text.at[4].set(image[1 + 6])
    view = words.word_maps(text, image, CAPTION, rule="plus")[0]
    assert view.patches[2].argmax() == 6
    assert view.strength.argmax() == 2


def view(strength, patches=None, names=("red", ",", "coat", "bag")) -> WordMaps:
    if patches is None:
        patches = np.eye(len(names), PATCHES)
    return WordMaps(
        "a view", names, np.float32(strength), np.asarray(patches, np.float32)
    )


def test_the_strongest_words_come_in_the_order_of_the_sentence():
    assert words.strongest(view([0.2, 9, 0.1, 0.5]), 2) == [0, 3]
    assert words.strongest(view([0.2, 9, 0.1, 0.5]), 8) == [0, 2, 3]


def test_words_without_a_sight_of_their_own_get_no_tile():
    names = ("the", "man", "in", "red", ".", "a")
    assert words.strongest(view([9, 1, 8, 2, 7, 6], names=names), 4) == [1, 3]
    names = ("the", "in", ".", "of")
    assert words.strongest(view([9, 8, 7, 6], names=names), 2) == [0, 1]


GREY = Image.new("RGB", (112, 224), (90, 90, 90))


def test_an_overlay_is_brighter_where_the_word_looks():
    """Also in grey, and with a black picture there and a white one elsewhere."""
    patches = np.zeros(PATCHES)
    patches[[0, 3, 7]] = 0.6, 0.3, 0.1
    pixels = np.full((224, 112, 3), 255, np.uint8)
    pixels[:56, :56] = 0
    drawn = overlays.overlay(Image.fromarray(pixels), patches, CONFIG)
    grey = np.asarray(drawn.convert("L")).reshape(4, 56, 2, 56)
    assert (grey == grey[:, :1, :, :1]).all()  # even within a patch
    cells = grey[:, 0, :, 0].ravel()
    assert cells[0] > cells[3] > cells[7] > cells[1] == cells[2] == 77
    # The strongest patch has the same colour whatever the values sum to.
    again = overlays.overlay(Image.fromarray(pixels), patches / 7, CONFIG)
    np.testing.assert_array_equal(again, drawn)


def test_an_empty_map_leaves_the_grey_picture():
    drawn = overlays.overlay(GREY, np.zeros(PATCHES), CONFIG)
    assert np.unique(np.asarray(drawn)[..., 0]).tolist() == [27]


def test_cells_lie_where_their_patches_are():
    """Patches of 8 by steps of 4 on 32 x 18: 7 x 3 cells, 2 pixels of border."""
    config = replace(CONFIG, image_size=(32, 18), stride=4)
    cells = np.arange(1.0, 22).reshape(config.grid)
    spread = overlays._spread(cells, config, (18, 32))
    assert spread.shape == (32, 18)
    inner = np.repeat(np.repeat(cells, 4, axis=0), 4, axis=1)
    np.testing.assert_array_equal(spread[2:30, 2:14], inner)
    spread[2:30, 2:14] = 0
    assert not spread.any()


def sentence(strength) -> np.ndarray:
    pixels = np.full((64, 32, 3), 120, np.uint8)
    drawn = view(strength)
    page = words_sheet(pixels, [drawn], CONFIG, note="a note", chosen=[0])
    first = overlays.MARGIN + 22 + 22
    return np.asarray(page.convert("L"))[first : first + 25]


def test_a_strong_word_stands_on_darker_ground():
    grey = sentence([0.1, 9.0, 0.5, 0.3])
    places = [x for x, _ in overlays._flow(("red", ",", "coat", "bag"), 500)]
    ground = [int(grey[1, overlays.MARGIN + x + 1]) for x in places]
    assert ground[1] == 255  # a mark has no strength, and does not set the scale
    assert ground[0] == 255 > ground[3] > ground[2]
    assert grey[23, overlays.MARGIN + 1] == 0  # chosen: underlined
    assert grey[23, overlays.MARGIN + places[2] + 1] == 255


def test_the_legend_shows_both_scales_and_fits_the_narrowest_sheet():
    pixels = np.full((64, 32, 3), 120, np.uint8)
    page = words_sheet(pixels, [view([1, 2, 3, 4])], CONFIG, note="n", chosen=[0])
    grey = np.asarray(page.convert("L"))
    assert (grey[:, -overlays.MARGIN :] == 255).all()
    left = slice(overlays.MARGIN + 1, overlays.MARGIN + overlays._SCALE[0] - 1)
    top = page.height - overlays.MARGIN - 18 * len(overlays.LEGEND)
    heat, ground = (grey[top + 18 * i + 6, left].astype(int) for i in range(2))
    assert (np.diff(heat) >= -1).all() and heat[-1] > heat[0] + 100
    assert (np.diff(ground) <= 0).all() and ground[0] > 250


def test_equal_strengths_and_long_sentences_fit(tmp_path):
    names = tuple(f"word{number}" for number in range(60))
    flat = view([0.5] * 60, np.ones((60, PATCHES)), names)
    pixels = np.full((40, 60, 3), 120, np.uint8)
    path = write_words(tmp_path / "x" / "a.png", pixels, [flat, flat], CONFIG, note="n")
    with Image.open(path) as image:
        right = np.asarray(image.convert("L"))[:, -overlays.MARGIN :]
    assert (right == 255).all()
    places = overlays._flow(names, 400)
    assert len(set(places)) == 60 and max(line for _, line in places) > 4


def test_a_caption_without_a_word_is_refused():
    empty = view([0.5], np.ones((1, PATCHES)), ("!",))
    with pytest.raises(ValueError, match=r"no word to draw in the caption \['!'\]"):
        words_sheet(np.zeros((8, 8, 3), np.uint8), [empty], CONFIG, note="n")
