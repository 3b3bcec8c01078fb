# SPDX-License-Identifier: Apache-2.0
"""A small model that has every part."""

import pytest

from fmfa_jax import models
from tests.tiny_model import tiny_model


@pytest.fixture(scope="session")
def tiny():
    return tiny_model(
        image_width=128,
        image_layers=3,
        context_length=8,
        vocab_size=40,
        text_layers=2,
        classes=5,
        irr_layers=2,
    )


@pytest.fixture(scope="session")
def tiny_params(tiny):
    return models.init_params(tiny, 0)
