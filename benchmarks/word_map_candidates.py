# SPDX-License-Identifier: Apache-2.0
"""Ways to tell which patches a word relates to, for `benchmarks/word_maps.py`.

Each takes a `Look` and returns a weight for each word and patch, not negative.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, UInt8

from data_pipeline.tokenizer import Word
from fmfa_jax import figures, models
from fmfa_jax.evaluation.runs import Run
from fmfa_jax.figures.contribution import without
from fmfa_jax.figures.words import word_patch_maps
from fmfa_jax.losses.arithmetic import unit
from fmfa_jax.models import ModelConfig

_ROWS = 16  # see `contribution`


@dataclass(frozen=True)
class Look:
    """A caption and a picture, as a model sees them."""

    run: Run
    pixels: UInt8[np.ndarray, "H W 3"]
    ids: Int32[np.ndarray, "l"]
    words: tuple[Word, ...]

    def tokens(self) -> tuple[Float[Array, "l d"], Float[Array, "n d"]]:
        """Return the outputs of both towers."""
        model = self.run.model
        image, text = model.forward_tokens(self.pixels[None], self.ids[None])
        return text[0], image[0]

    def without_words(self) -> Float[Array, "w d"]:
        """Return what each word adds to the caption's unit feature."""
        rows = [self.ids, *(without(self.ids, word) for word in self.words)]
        rows += rows[-1:] * (-len(rows) % _ROWS)
        text = models.text_features(*self._towers(), jnp.asarray(np.stack(rows)))
        return (unit(text[:1]) - unit(text[1:]))[: len(self.words)]

    def _towers(self) -> tuple[ModelConfig, dict]:
        return _towers(self.run)


def _towers(run: Run) -> tuple[ModelConfig, dict]:
    config = models.without_training_heads(run.model.config)
    return config, models.params_of(config, run.model.params)


def contribution(look: Look) -> Float32[np.ndarray, "w p"]:
    """The default view."""
    model = look.run.model
    return figures.contribution_maps(
        model.config, model.params, look.pixels, look.ids, look.words
    ).patches


def similarity(look: Look) -> Float32[np.ndarray, "w p"]:
    """EFA's groups."""
    return _word_maps(look)[0].patches


def attention(look: Look) -> Float32[np.ndarray, "w p"]:
    """That of the interaction encoder."""
    return _word_maps(look)[1].patches


def _word_maps(look: Look) -> tuple[figures.WordMaps, ...]:
    config, params = look.run.model.config, look.run.model.params
    irr = models.bind(config, params).irr if config.irr_layers else None
    rule = look.run.config["loss.efa_rule"]
    return figures.word_maps(*look.tokens(), look.words, rule=rule, interaction=irr)


def middle_layer(look: Look) -> Float32[np.ndarray, "w p"]:
    """EFA's groups of the patches after half of the blocks."""
    config, params = _towers(look.run)
    half = config.image_layers // 2
    tower = params["image_tower"]
    blocks = jax.tree.map(lambda param: param[:half], tower["blocks"])
    cut = {**params, "image_tower": {**tower, "blocks": blocks}}
    image = models.image_tokens(
        replace(config, image_layers=half), cut, look.pixels[None]
    )[0]
    return _efa(look, look.tokens()[0], image)


def minus_other_words(look: Look) -> Float32[np.ndarray, "w p"]:
    """EFA's groups of words from which the mean of all words is taken."""
    text, image = look.tokens()
    count = int(look.ids.argmax()) + 1
    return _efa(look, text - text[:count].mean(axis=0), image)


def minus_mean_patch(look: Look) -> Float32[np.ndarray, "w p"]:
    """EFA's groups by the cosine with patches less their mean."""
    text, image = look.tokens()
    return _efa(look, text, unit(image - image[1:].mean(axis=0)))


def low_norms(look: Look) -> Float32[np.ndarray, "w p"]:
    """EFA's groups without the eighth of the patches that has the largest norms.

    There transformers keep what is no local matter (Darcet et al., ICLR 2024).
    """
    text, image = look.tokens()
    norms = np.linalg.norm(image[1:], axis=-1)
    kept = norms < np.sort(norms)[-max(1, len(norms) // 8)]
    return _efa(look, text, image) * kept


def _efa(
    look: Look, text: Float[Array, "l d"], image: Float[Array, "n d"]
) -> Float32[np.ndarray, "w p"]:
    rule = look.run.config["loss.efa_rule"]
    return _by_word(look.words, word_patch_maps(text, jnp.asarray(image), rule=rule))


def _by_word(words: tuple[Word, ...], rows: Array) -> Float32[np.ndarray, "w p"]:
    values = np.asarray(rows, np.float32)
    return np.stack([values[word.start : word.stop].mean(axis=0) for word in words])


def occlusion(look: Look) -> Float32[np.ndarray, "w p"]:
    """By how much a word adds less where a patch has the picture's mean colour."""
    config, params = _towers(look.run)
    hidden = models.image_features(config, params, _hidden(look.pixels, config))
    adds = np.asarray(look.without_words() @ unit(hidden).T)
    return np.maximum(adds[:, :1] - adds[:, 1:], 0)


def _hidden(
    pixels: UInt8[np.ndarray, "H W 3"], config: ModelConfig
) -> UInt8[np.ndarray, "m H W 3"]:
    """Return a picture, then it without each of its patches."""
    mean = pixels.mean(axis=(0, 1)).round().astype(np.uint8)
    copies = [pixels]
    for row, column in np.ndindex(config.grid):
        top, left = row * config.stride, column * config.stride
        copy = pixels.copy()
        copy[top : top + config.patch, left : left + config.patch] = mean
        copies.append(copy)
    return np.stack(copies)


def grad_cam(look: Look, *, depth: int) -> Float32[np.ndarray, "w p"]:
    """Patches after `depth` blocks, times the gradient of what a word adds.

    As Grad-CAM (Selvaraju et al., ICCV 2017), but token by token.
    """
    return _cam(look, look.without_words(), depth)


def word_cam(look: Look, *, depth: int) -> Float32[np.ndarray, "w p"]:
    """The same, for the cosine of the word's own token with the class token."""
    text = look.tokens()[0]
    spans = [text[word.start : word.stop].mean(axis=0) for word in look.words]
    return _cam(look, unit(jnp.stack(spans)), depth)


def _cam(
    look: Look, directions: Float[Array, "w d"], depth: int
) -> Float32[np.ndarray, "w p"]:
    count = len(directions)
    rows = jnp.pad(directions, ((0, -count % _ROWS), (0, 0)))
    config, params = _towers(look.run)
    found = _products(config, params, jnp.asarray(look.pixels), rows, depth=depth)
    return np.maximum(np.asarray(found), 0)[:count]


@partial(jax.jit, static_argnums=0, static_argnames="depth")
def _products(
    config: ModelConfig,
    params: dict,
    pixels: UInt8[Array, "H W 3"],
    directions: Float[Array, "r d"],
    *,
    depth: int,
) -> Float[Array, "r p"]:
    tower = models.bind(config, params).image_tower

    def run(x: Array, layers: range) -> Array:
        """Run some of the tower's layers."""
        for layer in layers:
            one = jax.tree.map(lambda param, at=layer: param[at], tower.blocks)
            x = one.one(x, mask="none")
        return x

    def score(x: Array) -> Array:
        out = tower._projected(run(x, range(depth, config.image_layers)))
        return directions @ unit(models.global_image(out))[0]

    first = tower._embedded(models.normalize_images(pixels[None]))
    x = run(first, range(depth))
    return jnp.einsum("rbnw,bnw->rn", jax.jacrev(score)(x), x)[:, 1:]


ATTENTION = "attention"
CANDIDATES: dict[str, Callable[[Look], np.ndarray]] = {
    "similarity": similarity,
    ATTENTION: attention,
    "similarity, middle layer": middle_layer,
    "similarity, less other words": minus_other_words,
    "similarity, less mean patch": minus_mean_patch,
    "similarity, low norms": low_norms,
    "word's gradient x tokens": partial(word_cam, depth=1),
    "gradient x tokens": partial(grad_cam, depth=1),
    "occlusion": occlusion,
    "contribution": contribution,
}
