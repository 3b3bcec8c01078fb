# SPDX-License-Identifier: Apache-2.0
import dataclasses
import math

import jax
import pytest

from fmfa_jax import models

# Published parameter counts of OpenAI's models, less the logit scale that we fix.
CLIP_SIZES = {
    "vit-b-16": 149_620_737 - 1,
    "vit-b-32": 151_277_313 - 1,
    "vit-l-14": 427_616_513 - 1,
}


@pytest.mark.parametrize("name", CLIP_SIZES)
def test_presets_have_the_published_size(name):
    square = dataclasses.replace(models.PRESETS[name], image_size=(224, 224))
    shapes = jax.tree.leaves(models.param_shapes(square))
    assert sum(math.prod(x.shape) for x in shapes) == CLIP_SIZES[name]


def test_grid_of_the_default_and_of_overlapping_patches():
    config = models.PRESETS["vit-b-16"]
    assert config.grid == (24, 8)
    assert config.image_tokens == 193
    assert dataclasses.replace(config, stride=12).grid == (31, 10)


def test_large_preset_leaves_out_the_pixels_that_fill_no_patch():
    assert models.PRESETS["vit-l-14"].grid == (27, 9)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"text_width": 100}, "text_width"),
        ({"stride": 17}, "stride"),
        ({"stride": 0}, "stride"),
        ({"image_layers": 0}, "image_layers"),
        ({"classes": -1}, "classes"),
        ({"image_size": (8, 128)}, "image_size"),
        ({"dtype": "float16"}, "bfloat16"),
        ({"remat": "some"}, "full"),
    ],
)
def test_impossible_configs_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(models.PRESETS["vit-b-16"], **change)


def test_all_problems_come_in_one_error():
    with pytest.raises(ValueError, match=r"embed_dim.*stride.*remat"):
        dataclasses.replace(
            models.PRESETS["demo"], embed_dim=1, stride=99, remat="perhaps"
        )
