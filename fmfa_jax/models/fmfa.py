# SPDX-License-Identifier: Apache-2.0
"""The whole model, and its parameters as plain nested dictionaries."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jaxtyping import Array, Float, Int, UInt8

from fmfa_jax.models.config import ModelConfig
from fmfa_jax.models.heads import InteractionEncoder, MaskedLogits, identity_head
from fmfa_jax.models.layers import compute_dtype
from fmfa_jax.models.towers import ImageTower, TextTower

# Of CLIP's training pictures, red, green, blue.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def normalize_images(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Bytes -> what the image tower expects: [0, 1], less CLIP's mean, over its std."""
    # float32, or float64 where 64-bit is enabled.
    dtype = jnp.result_type(float)
    mean, std = jnp.asarray(IMAGE_MEAN, dtype), jnp.asarray(IMAGE_STD, dtype)
    return (images.astype(dtype) / 255 - mean) / std


def global_image(tokens: Float[Array, "b n d"]) -> Float[Array, "b d"]:
    """The feature of each picture: its class token."""
    return tokens[:, 0]


def global_text(
    tokens: Float[Array, "b l d"], ids: Int[Array, "b l"]
) -> Float[Array, "b d"]:
    """The feature of each caption: its end token, which has the largest id."""
    last = jnp.argmax(ids, axis=1)
    return jnp.take_along_axis(tokens, last[:, None, None], axis=1)[:, 0]


class FMFA(nnx.Module):
    """Two CLIP towers with, where the config asks for them, the training heads."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.image_tower = ImageTower(config)
        self.text_tower = TextTower(config)
        if config.irr_layers:
            self.irr = InteractionEncoder(config)
        if config.classes:
            self.classifier = identity_head(config)
        self._draw(rngs)

    def _draw(self, rngs: nnx.Rngs) -> None:
        """Fill every parameter that was declared by `layers.drawn`.

        The generator's output has a stable prefix and the heads come last, so equal
        seeds give equal towers whatever heads stand on them.
        """
        parts = ("image_tower", "text_tower", "irr", "classifier")
        declared = [
            variable
            for part in parts
            if hasattr(self, part)
            for _, variable in nnx.iter_graph(getattr(self, part))
            if isinstance(variable, nnx.Param) and "std" in variable.get_metadata()
        ]
        sizes = [variable[...].size for variable in declared]
        noise = jax.random.normal(rngs.params(), (sum(sizes),), jnp.float32)
        pieces = jnp.split(noise, list(itertools.accumulate(sizes))[:-1])
        for variable, piece in zip(declared, pieces, strict=True):
            std = variable.get_metadata("std")
            variable[...] = std * piece.reshape(variable[...].shape)

    def encode_images(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """Pictures from `normalize_images` -> float32 tokens, the class token first."""
        return self.image_tower(pixels)

    def encode_texts(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Token ids, padded with 0 -> float32 tokens of every position."""
        return self.text_tower(ids)

    def identity_logits(self, features: Float[Array, "b d"]) -> Float[Array, "b k"]:
        """Global features, not normalised -> float32 scores of the identities."""
        if not self.config.classes:
            raise ValueError(
                "This model has no identity head: it was built with classes=0. Set "
                "classes to the number of identities, or drop the id loss."
            )
        dtype = compute_dtype(self.config.dtype, self.classifier.kernel[...])
        return self.classifier.wide(features.astype(dtype))

    def masked_logits(
        self,
        text_tokens: Float[Array, "b l d"],
        image_tokens: Float[Array, "b n d"],
        labels: Int[Array, "b l"],
        capacity: int,
        lengths: Int[Array, " b"] | None = None,
    ) -> MaskedLogits:
        """Guess the masked words of captions from the words left and the picture.

        Args:
            text_tokens: the text tower's output for the masked captions.
            image_tokens: the image tower's output, all tokens.
            labels: the original id of each masked position, 0 elsewhere.
            capacity: labelled positions that are scored per caption; the first ones
                are taken and the others counted in `dropped`.
            lengths: of the captions, whose padding is then not looked at; None: it is,
                as in the official code.
        """
        if not self.config.irr_layers:
            raise ValueError(
                "This model has no interaction encoder: it was built with "
                "irr_layers=0. Set irr_layers (4 in the paper), or drop the mlm loss."
            )
        return self.irr(
            text_tokens, image_tokens, labels, capacity=capacity, lengths=lengths
        )


def init_params(config: ModelConfig, seed: int | Array = 0) -> dict[str, Any]:
    """Draw float32 parameters: nested dictionaries, equal for equal (config, seed).

    Args:
        config: sizes of the model.
        seed: an integer or a JAX key.
    """
    key = jax.random.key(seed) if isinstance(seed, int) else seed
    return _draw(config, key)


@functools.partial(jax.jit, static_argnums=0)
def _draw(config: ModelConfig, key: Array) -> dict[str, Any]:
    return nnx.to_pure_dict(nnx.state(FMFA(config, rngs=nnx.Rngs(key))))


@functools.lru_cache(maxsize=64)
def _abstract(config: ModelConfig) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """The graph of a model and the shapes of its parameters; nothing is allocated."""
    model = nnx.eval_shape(lambda: FMFA(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def param_shapes(config: ModelConfig) -> dict[str, Any]:
    """The nested dictionary of `init_params` with shapes in place of arrays."""
    return _abstract(config)[1]


def bind(config: ModelConfig, params: dict[str, Any]) -> FMFA:
    """Give parameters (of JAX or NumPy) their model, inside or outside of jit.

    Raises:
        ValueError: naming every parameter that is missing, surplus or misshapen.
    """
    graph, shapes = _abstract(config)
    _check_params(shapes, params)
    return nnx.merge(graph, jax.tree.map(jnp.asarray, params))


def _check_params(shapes: dict[str, Any], params: dict[str, Any]) -> None:
    """Compare paths and shapes; all differences go into one error."""
    wanted = traverse_util.flatten_dict(shapes, sep="/")
    given = traverse_util.flatten_dict(params, sep="/")
    problems = [f"missing {path}" for path in sorted(wanted.keys() - given.keys())]
    problems += [f"unknown {path}" for path in sorted(given.keys() - wanted.keys())]
    problems += [
        f"{path} must be {wanted[path].shape}, got {jnp.shape(given[path])}"
        for path in sorted(wanted.keys() & given.keys())
        if wanted[path].shape != jnp.shape(given[path])
    ]
    if problems:
        raise ValueError("Parameters do not fit the config: " + "; ".join(problems))
