# SPDX-License-Identifier: Apache-2.0
"""The smallest model that heads of 64 allow; tests state only what they change."""

from dataclasses import replace

from fmfa_jax.models import ModelConfig

TINY = ModelConfig(
    image_size=(32, 16),
    patch=8,
    stride=8,
    image_width=64,
    image_layers=1,
    context_length=12,
    vocab_size=80,
    text_width=64,
    text_layers=1,
    embed_dim=64,
)


def tiny_model(**changes) -> ModelConfig:
    """`TINY` with other sizes."""
    return replace(TINY, **changes)
