# SPDX-License-Identifier: Apache-2.0
"""Global features of whole batches, compiled once for each size of model and batch."""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float, Int, UInt8

from fmfa_jax.models.config import ModelConfig
from fmfa_jax.models.fmfa import bind, global_image, global_text, normalize_images


@functools.partial(jax.jit, static_argnums=0)
def image_features(
    config: ModelConfig, params: dict[str, Any], images: UInt8[Array, "b h w 3"]
) -> Float[Array, "b d"]:
    """Pictures as bytes -> float32 global features, not normalised."""
    tokens = bind(config, params).encode_images(normalize_images(images))
    return global_image(tokens)


@functools.partial(jax.jit, static_argnums=0)
def text_features(
    config: ModelConfig, params: dict[str, Any], ids: Int[Array, "b l"]
) -> Float[Array, "b d"]:
    """Token ids -> float32 global features, not normalised."""
    return global_text(bind(config, params).encode_texts(ids), ids)
