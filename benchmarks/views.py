# SPDX-License-Identifier: Apache-2.0
"""The weak method's two views: encoded one after the other, or as one larger batch.

    python -m benchmarks.views

Times towers and gradient (the losses are the same and small); prints the ratio.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from fmfa_jax import models

CASES = {
    "demo towers, 64x32": (
        dataclasses.replace(models.PRESETS["demo"], image_size=(64, 32)),
        32,
    ),
    "ViT-B/16 384x128, 2 + 2 layers": (
        dataclasses.replace(
            models.PRESETS["vit-b-16"],
            image_size=(384, 128),
            image_layers=2,
            text_layers=2,
        ),
        8,
    ),
}


def encode(config: models.ModelConfig, way: str) -> Callable[..., Any]:
    """The gradient of a sum over both views' features, encoded in one of the ways."""

    def features(params: Any, pixels: jax.Array, tokens: jax.Array) -> Any:
        model = models.bind(config, params)
        text = models.global_text(model.encode_texts(tokens), tokens)
        return models.global_image(model.encode_images(pixels)), text

    def separate(params: Any, pixels: jax.Array, tokens: jax.Array) -> Any:
        views = [features(params, pixels[i], tokens[i]) for i in (0, 1)]
        return jax.tree.map(lambda *x: jnp.stack(x), *views)

    def concatenated(params: Any, pixels: jax.Array, tokens: jax.Array) -> Any:
        joined = (x.reshape(-1, *x.shape[2:]) for x in (pixels, tokens))
        return features(params, *joined)

    chosen = {"separate": separate, "concatenated": concatenated}[way]

    def total(params: Any, pixels: jax.Array, tokens: jax.Array) -> jax.Array:
        return sum(jnp.sum(x**2) for x in chosen(params, pixels, tokens))

    return jax.jit(jax.grad(total))


def compare(name: str, *, repeats: int) -> list[str]:
    """One line of the table."""
    config, batch = CASES[name]
    rng = np.random.default_rng(0)
    pixels = jnp.asarray(rng.normal(size=(2, batch, *config.image_size, 3)), "float32")
    shape = (2, batch, config.context_length)
    tokens = jnp.asarray(rng.integers(1, config.vocab_size, shape), "int32")
    params = models.init_params(config, 0)
    ways = ("separate", "concatenated")
    grads = {way: encode(config, way) for way in ways}
    results = [grads[way](params, pixels, tokens) for way in ways]
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(results[0]))
    apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), *results)
    worst = max(jax.tree.leaves(apart)) / scale
    if worst > 1e-4:
        raise AssertionError(f"{name}: the two ways differ by {worst:.1e}")
    times = common.alternate(
        {way: lambda grad=grads[way]: grad(params, pixels, tokens) for way in ways},
        repeats=repeats,
    )
    one, other = times["separate"], times["concatenated"]
    return [
        name,
        str(batch),
        f"{1e3 * one:.0f}",
        f"{1e3 * other:.0f}",
        f"{one / other:.2f}x",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    given = parser.parse_args(arguments)
    common.show(
        "two views of a batch, value and gradient",
        ("towers", "pairs", "separate, ms", "concatenated, ms", "gain"),
        [compare(name, repeats=given.repeats) for name in given.cases],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
