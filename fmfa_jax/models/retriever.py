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
from fmfa_jax.models.parts import params_of, without_training_heads
from fmfa_jax.models.selection import unit_rows

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
) -> Float[Array, "b f"]:
    """Encode uint8 images as float32 features of `config.feature_width`.

    Of the towers alone they are global and not normalized; with token selection see
    `fused`.
    """
    if not config.tse_width:
        return global_image(image_tokens(config, params, images))
    model = bind(config, params)
    features, selected = model.selected_images(normalize_images(images))
    return fused(features, model.tse.image(selected).features)


@functools.partial(jax.jit, static_argnums=0)
def text_features(
    config: ModelConfig, params: dict[str, Any], ids: Ids
) -> Float[Array, "b f"]:
    """Encode token ids as float32 features; see `image_features`."""
    ids = jnp.asarray(ids)
    if not config.tse_width:
        return global_text(text_tokens(config, params, ids), ids)
    model = bind(config, params)
    features, selected = model.selected_texts(ids)
    return fused(features, model.tse.text(selected).features)


def fused(bge: Float[Array, "b d"], tse: Float[Array, "b e"]) -> Float[Array, "b f"]:
    """Join global and selection embeddings into one feature of length 1.

    The cosine of two of them is the mean of the cosines of both parts (RDE at test).
    """
    joined = jnp.concatenate([unit_rows(bge), unit_rows(tse)], axis=1)
    return joined * 2**-0.5


def feature_parts(config: ModelConfig) -> dict[str, slice]:
    """Name the columns of features that are embeddings of their own; often none are."""
    if not config.tse_width:
        return {}
    return {"BGE": slice(config.embed_dim), "TSE": slice(config.embed_dim, None)}


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
        # Without its other heads, it shares compiled encoders with models of its size.
        self._encoders = without_training_heads(config)

    def encode_image(self, images: Images) -> Float[Array, "b f"]:
        """Encode images of `config.image_size`; see `image_features`.

        Raises:
            ValueError: The images have another size.
        """
        return image_features(*self._model(), self._checked_images(images))

    def encode_text(self, tokens: Ids) -> Float[Array, "b f"]:
        """Encode token ids, padded with 0; see `text_features`.

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
        return self._encoders, params_of(self._encoders, self.params)

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
