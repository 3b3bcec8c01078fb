# SPDX-License-Identifier: Apache-2.0
"""The whole model, with its parameters as plain nested dictionaries."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jaxtyping import Array, Float, Int, UInt8

from fmfa_jax.models import selection
from fmfa_jax.models.config import ModelConfig
from fmfa_jax.models.heads import MaskedLogits, MaskedWords, labelled_rows
from fmfa_jax.models.layers import Linear, compute_dtype
from fmfa_jax.models.parts import PARTS
from fmfa_jax.models.placement import gathered
from fmfa_jax.models.selection import Selected

# Statistics of CLIP's training images: red, green, blue.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def normalize_images(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Scale uint8 images to [0, 1], then standardize with CLIP's mean and std."""
    # float32, or float64 if JAX has 64-bit types enabled.
    dtype = jnp.result_type(float)
    mean, std = jnp.asarray(IMAGE_MEAN, dtype), jnp.asarray(IMAGE_STD, dtype)
    return (images.astype(dtype) / 255 - mean) / std


def global_image(tokens: Float[Array, "b n d"]) -> Float[Array, "b d"]:
    """Return the feature of each image: its class token."""
    return tokens[:, 0]


def global_text(
    tokens: Float[Array, "b l d"], ids: Int[Array, "b l"]
) -> Float[Array, "b d"]:
    """Return the feature of each caption: its end token, which has the largest id."""
    last = jnp.argmax(ids, axis=1)
    return jnp.take_along_axis(tokens, last[:, None, None], axis=1)[:, 0]


class FMFA(nnx.Module):
    """Two CLIP towers and whichever training heads the config asks for.

    Each part of `parts.PARTS` that the config includes is an attribute of its name.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        for part in PARTS:
            if part.is_in(config):
                setattr(self, part.name, part.build(config))
        self._draw(rngs)

    def _draw(self, rngs: nnx.Rngs) -> None:
        """Fill every parameter declared with `layers.drawn`.

        The generator's output has a stable prefix and the heads come last, so equal
        seeds give equal towers whichever heads the model has.
        """
        declared = [
            variable
            for part in PARTS
            if part.is_in(self.config)
            for _, variable in nnx.iter_graph(getattr(self, part.name))
            if isinstance(variable, nnx.Param) and "std" in variable.get_metadata()
        ]
        sizes = [variable[...].size for variable in declared]
        noise = jax.random.normal(rngs.params(), (sum(sizes),), jnp.float32)
        pieces = jnp.split(noise, list(itertools.accumulate(sizes))[:-1])
        for variable, piece in zip(declared, pieces, strict=True):
            std = variable.get_metadata("std")
            variable[...] = std * piece.reshape(variable[...].shape)

    def encode_images(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """Encode `normalize_images` output as float32 tokens, the class token first."""
        return self.image_tower(pixels)

    def encode_texts(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Encode token ids, padded with 0, as a float32 token for every position."""
        return self.text_tower(ids)

    def selected_images(
        self, pixels: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b d"], Selected]:
        """Encode images as global features and the patches that these attend to.

        Both are float32; the part `tse` embeds what is selected.
        """
        tokens, attention = self.image_tower.attended(pixels)
        selected = selection.select_patches(
            tokens, attention, ratio=self.config.tse_ratio
        )
        return global_image(tokens), selected

    def selected_texts(
        self, ids: Int[Array, "b l"]
    ) -> tuple[Float[Array, "b d"], Selected]:
        """Encode captions as global features and the words that these attend to."""
        tokens, attention = self.text_tower.attended(ids)
        selected = selection.select_words(
            tokens,
            attention,
            ids,
            ratio=self.config.tse_ratio,
            context_length=self.config.context_length,
        )
        return global_text(tokens, ids), selected

    def identity_logits(self, features: Float[Array, "b d"]) -> Float[Array, "b k"]:
        """Score each identity in float32, given global features, not normalized."""
        if not self.config.classes:
            raise ValueError(
                "This model has no identity head: it was built with classes=0. Set "
                "classes to the number of identities, or drop the id loss."
            )
        dtype = compute_dtype(self.config.dtype, self.classifier.kernel[...])
        return self.classifier.wide(features.astype(dtype))

    def masked_words(
        self,
        text_tokens: Float[Array, "b l d"],
        image_tokens: Float[Array, "b n d"],
        labels: Int[Array, "b l"],
        capacity: int,
        lengths: Int[Array, " b"] | None = None,
    ) -> MaskedWords:
        """Guess the masked words of captions from their other words and the image.

        The guesses are rows that `vocabulary` scores.

        Args:
            text_tokens: Output of the text tower for the masked captions.
            image_tokens: Output of the image tower, all tokens.
            labels: Original id of each masked position, 0 elsewhere.
            capacity: Number of labelled positions to score per caption. The first
                ones are scored, the rest are counted in `dropped`.
            lengths: Caption lengths, to exclude padding from attention. None attends
                to padding as well, as the official code does.
        """
        if not self.config.irr_layers:
            raise ValueError(
                "This model has no interaction encoder: it was built with "
                "irr_layers=0. Set irr_layers (4 in the paper), or drop the mlm loss."
            )
        rows = labelled_rows(labels, capacity=capacity)
        hidden = self.irr(text_tokens, image_tokens, rows.position, lengths=lengths)
        return MaskedWords(hidden, rows.labels, rows.dropped)

    @property
    def vocabulary(self) -> Linear:
        """The layer whose `wide` turns guesses of `masked_words` into logits."""
        return self.irr.head.fc

    def masked_logits(
        self,
        text_tokens: Float[Array, "b l d"],
        image_tokens: Float[Array, "b n d"],
        labels: Int[Array, "b l"],
        capacity: int,
        lengths: Int[Array, " b"] | None = None,
    ) -> MaskedLogits:
        """Score the vocabulary for all guesses of `masked_words` at once."""
        words = self.masked_words(text_tokens, image_tokens, labels, capacity, lengths)
        logits = self.vocabulary.wide(words.hidden)
        return MaskedLogits(logits, words.labels, words.dropped)


def init_params(config: ModelConfig, seed: int | Array = 0) -> dict[str, Any]:
    """Draw float32 parameters as nested dictionaries, a function of (config, seed).

    Args:
        config: Sizes of the model.
        seed: An integer or a JAX key.
    """
    key = jax.random.key(seed) if isinstance(seed, int) else seed
    return _draw(config, key)


@functools.partial(jax.jit, static_argnums=0)
def _draw(config: ModelConfig, key: Array) -> dict[str, Any]:
    return nnx.to_pure_dict(nnx.state(FMFA(config, rngs=nnx.Rngs(key))))


@functools.lru_cache(maxsize=64)
def _abstract(config: ModelConfig) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Return a model's graph and the shapes of its parameters, allocating nothing."""
    model = nnx.eval_shape(lambda: FMFA(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def param_shapes(config: ModelConfig) -> dict[str, Any]:
    """Return the nested dictionary of `init_params` with shapes in place of arrays."""
    return _abstract(config)[1]


def bind(config: ModelConfig, params: dict[str, Any]) -> FMFA:
    """Build the model around JAX or NumPy parameters, inside or outside of `jit`.

    Raises:
        ValueError: Parameters are missing, unknown or misshapen; all are listed.
    """
    graph, shapes = _abstract(config)
    _check_params(shapes, params)
    params = jax.tree.map(jnp.asarray, params)
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(_outside_blocks, params))


def _outside_blocks(path: tuple, param: Array) -> Array:
    """Gather a parameter, unless its layers are gathered one at a time."""
    inside = any(getattr(key, "key", None) == "blocks" for key in path)
    return param if inside else gathered(param)


def _check_params(shapes: dict[str, Any], params: dict[str, Any]) -> None:
    """Compare paths and shapes, and report all differences in one error."""
    wanted = traverse_util.flatten_dict(shapes, sep="/")
    given = traverse_util.flatten_dict(params, sep="/")
    problems = [f"missing {path}" for path in sorted(wanted.keys() - given.keys())]
    problems += [f"unknown {path}" for path in sorted(given.keys() - wanted.keys())]
    problems += [
        f"{path} must be {wanted[path].shape}, got {np.shape(given[path])}"
        for path in sorted(wanted.keys() & given.keys())
        if wanted[path].shape != np.shape(given[path])
    ]
    if problems:
        raise ValueError("Parameters do not fit the config: " + "; ".join(problems))
