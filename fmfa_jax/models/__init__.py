# SPDX-License-Identifier: Apache-2.0
"""CLIP towers and the heads of FMFA, as Flax NNX modules over plain parameters."""

from fmfa_jax.models.config import PRESETS, ModelConfig, towers_of
from fmfa_jax.models.fmfa import (
    FMFA,
    IMAGE_MEAN,
    IMAGE_STD,
    bind,
    global_image,
    global_text,
    init_params,
    normalize_images,
    param_shapes,
)
from fmfa_jax.models.heads import MaskedLogits
from fmfa_jax.models.retriever import image_features, text_features

__all__ = [
    "FMFA",
    "IMAGE_MEAN",
    "IMAGE_STD",
    "PRESETS",
    "MaskedLogits",
    "ModelConfig",
    "bind",
    "global_image",
    "global_text",
    "image_features",
    "init_params",
    "normalize_images",
    "param_shapes",
    "text_features",
    "towers_of",
]
