# SPDX-License-Identifier: Apache-2.0
"""CLIP's two towers and the training heads: NNX modules over plain parameters."""

from fmfa_jax.models.config import PRESETS, Compute, ModelConfig
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
from fmfa_jax.models.parts import (
    HEADS,
    INTERACTION,
    PARTS,
    TOWERS,
    Part,
    params_of,
    provided,
    towers_only,
    without_training_heads,
)
from fmfa_jax.models.retriever import (
    Retriever,
    feature_parts,
    fused,
    image_features,
    image_tokens,
    text_features,
    text_tokens,
)

__all__ = [
    "FMFA",
    "HEADS",
    "IMAGE_MEAN",
    "IMAGE_STD",
    "INTERACTION",
    "PARTS",
    "PRESETS",
    "TOWERS",
    "Compute",
    "MaskedLogits",
    "ModelConfig",
    "Part",
    "Retriever",
    "bind",
    "feature_parts",
    "fused",
    "global_image",
    "global_text",
    "image_features",
    "image_tokens",
    "init_params",
    "normalize_images",
    "param_shapes",
    "params_of",
    "provided",
    "text_features",
    "text_tokens",
    "towers_only",
    "without_training_heads",
]
