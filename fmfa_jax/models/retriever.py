# SPDX-License-Identifier: Apache-2.0
"""The trained towers in use: encoders compiled once per model and batch size."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from fmfa_jax.models.config import ModelConfig
from fmfa_jax.models.fmfa import bind, global_image, global_text, normalize_images
from fmfa_jax.models.parts import tower_params, towers_only

Images = UInt8[Array | np.ndarray, "b h w 3"]
Ids = Int[Array | np.ndarray, "b l"]


@functools.partial(jax.jit, static_argnums=0)
def image_tokens(
    config: ModelConfig, params: dict[str, Any], images: Images
) -> Float[Array, "b n d"]:
    """Encode uint8 images as float32 tokens, not normalized, the class token first."""
    return bind(config, params).encode_images(normalize_images(images))


@functools.partial(jax.jit, static_argnums=0)
def text_tokens(
    config: ModelConfig, params: dict[str, Any], ids: Ids
) -> Float[Array, "b l d"]:
    """Encode token ids as float32 tokens, not normalized."""
    return bind(config, params).encode_texts(ids)


@functools.partial(jax.jit, static_argnums=0)
def image_features(
    config: ModelConfig, params: dict[str, Any], images: Images
) -> Float[Array, "b d"]:
    """Encode uint8 images as float32 global features, not normalized."""
    return global_image(image_tokens(config, params, images))


@functools.partial(jax.jit, static_argnums=0)
def text_features(
    config: ModelConfig, params: dict[str, Any], ids: Ids
) -> Float[Array, "b d"]:
    """Encode token ids as float32 global features, not normalized."""
    return global_text(text_tokens(config, params, ids), jnp.asarray(ids))


class Retriever:
    """A trained model that encodes images and captions into one space.

    Attributes:
        config: Sizes of the model.
        params: Nested dictionary of JAX arrays, heads included.
        report: What a weight file contributed, or None if the model is not from one.
    """

    def __init__(self, config: ModelConfig, params: dict[str, Any], report: Any = None):
        self.config = config
        self.report = report
        # On a CPU, suitably aligned arrays are taken over without a copy.
        self.params = jax.tree.map(
            lambda array: jax.device_put(array, may_alias=True), params
        )
        # Without heads, models of equal size share their compiled encoders.
        self._towers = towers_only(config)

    def encode_image(self, images: Images) -> Float[Array, "b d"]:
        """Encode images of `config.image_size` as global features, not normalized.

        Raises:
            ValueError: The images have another size.
        """
        return image_features(*self._model(), self._checked_images(images))

    def encode_text(self, tokens: Ids) -> Float[Array, "b d"]:
        """Encode token ids, padded with 0, as global features, not normalized.

        Raises:
            ValueError: The captions are not `config.context_length` long.
        """
        return text_features(*self._model(), self._checked_ids(tokens))

    def forward_tokens(
        self,
        images: Images,
        tokens: Int[Array | np.ndarray, "c l"],
    ) -> tuple[Float[Array, "b n d"], Float[Array, "c l d"]]:
        """Encode images and captions as the tokens of both towers, not normalized."""
        return (
            image_tokens(*self._model(), self._checked_images(images)),
            text_tokens(*self._model(), self._checked_ids(tokens)),
        )

    def _model(self) -> tuple[ModelConfig, dict[str, Any]]:
        return self._towers, tower_params(self.params)

    def _checked_images(self, images: Images) -> Images:
        if tuple(images.shape[1:3]) != tuple(self.config.image_size):
            raise ValueError(
                f"expected images of (height, width) {self.config.image_size}, got "
                f"{tuple(images.shape[1:3])}: resize them, or load the model with "
                "that image_size"
            )
        return images

    def _checked_ids(self, tokens: Ids) -> Ids:
        if tokens.shape[1] != self.config.context_length:
            raise ValueError(
                f"expected captions of {self.config.context_length} tokens, got "
                f"{tokens.shape[1]}: pad or cut them, or load the model with that "
                "context_length"
            )
        return tokens
