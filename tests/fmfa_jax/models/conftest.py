# SPDX-License-Identifier: Apache-2.0
"""A model that is as small as heads of 64 allow."""

import pytest

from fmfa_jax import models


@pytest.fixture(scope="session")
def tiny():
    return models.ModelConfig(
        image_size=(32, 16),
        patch=8,
        stride=8,
        image_width=128,
        image_layers=3,
        context_length=8,
        vocab_size=40,
        text_width=64,
        text_layers=2,
        embed_dim=64,
        classes=5,
        irr_layers=2,
    )


@pytest.fixture(scope="session")
def tiny_params(tiny):
    return models.init_params(tiny, 0)
