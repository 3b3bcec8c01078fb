# SPDX-License-Identifier: Apache-2.0
"""CLIP's two towers, projecting the output of every position.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural
Language Supervision". Unlike in CLIP, the last norm and the projection apply to all
tokens, because the fine-grained losses need patches and words.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from fmfa_jax.models.config import ModelConfig
from fmfa_jax.models.layers import Blocks, LayerNorm, compute_dtype, drawn, project


def patches_of(
    pixels: Float[Array, "b h w 3"], *, patch: int, stride: int
) -> Float[Array, "b n f"]:
    """Cut images into row-major patches of `patch * patch * 3` values each.

    Pixels right of or below the last whole patch are ignored, as by a convolution
    without padding.
    """
    batch, height, width, channels = pixels.shape
    rows = (height - patch) // stride + 1
    columns = (width - patch) // stride + 1
    if stride == patch:
        cut = pixels[:, : rows * patch, : columns * patch]
        cut = cut.reshape(batch, rows, patch, columns, patch, channels)
    else:
        inside = jnp.arange(patch)
        down = stride * jnp.arange(rows)[:, None] + inside
        across = stride * jnp.arange(columns)[:, None] + inside
        cut = pixels[:, down][:, :, :, across]
    cut = cut.transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(batch, rows * columns, patch * patch * channels)


class ImageTower(nnx.Module):
    """Vision transformer over a rectangular grid of patches."""

    def __init__(self, config: ModelConfig):
        width, patch = config.image_width, config.patch
        scale = width**-0.5
        self.config = config
        # Standard deviation of PyTorch's uniform init for a convolution's fan-in.
        patch_std = (3 * 3 * patch * patch) ** -0.5
        self.patch = Patch((patch, patch, 3, width), std=patch_std)
        self.class_token = drawn((width,), scale)
        self.position = drawn((config.image_tokens, width), scale)
        self.ln_pre = LayerNorm(width)
        self.blocks = Blocks(
            width, config.image_layers, compute=config, activation=config.activation
        )
        self.ln_post = LayerNorm(width)
        self.projection = drawn((width, config.embed_dim), scale)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """Encode standardized images as projected float32 tokens, class token first."""
        return self._projected(self.blocks(self._embedded(pixels), mask="none"))

    def attended(
        self, pixels: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n"]]:
        """Also tell what the class token attends to, see `Blocks.attended`."""
        x = self._embedded(pixels)
        first = jnp.zeros(x.shape[0], jnp.int32)
        x, attention = self.blocks.attended(x, first, mask="none")
        return self._projected(x), attention

    def _dtype(self) -> DTypeLike:
        return compute_dtype(self.config.dtype, self.patch.kernel[...])

    def _projected(self, x: Float[Array, "b n e"]) -> Float[Array, "b n d"]:
        x = self.ln_post(x).astype(self._dtype())
        return project(x, self.projection[...], self.config)

    def _embedded(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b n e"]:
        """Return class token and patches plus positions, normed, at least float32."""
        self._check(pixels)
        config, kernel, dtype = self.config, self.patch.kernel[...], self._dtype()
        cut = patches_of(pixels.astype(dtype), patch=config.patch, stride=config.stride)
        patches = project(cut, kernel.reshape(-1, config.image_width), config)
        first = jnp.broadcast_to(
            self.class_token[...].astype(patches.dtype),
            (patches.shape[0], 1, patches.shape[2]),
        )
        embedded = jnp.concatenate([first, patches], axis=1) + self.position[...]
        return self.ln_pre(embedded)

    def _check(self, pixels: Float[Array, "b h w 3"]) -> None:
        if pixels.shape[1:3] != self.config.image_size:
            raise ValueError(
                f"The image tower was built for images of (height, width) "
                f"{self.config.image_size} and got {pixels.shape[1:3]}: resize them, "
                f"or build the model with that image_size."
            )


class Patch(nnx.Module):
    """The patch embedding's kernel; a module, so that its path ends in /kernel."""

    def __init__(self, shape: tuple[int, ...], *, std: float):
        self.kernel = drawn(shape, std)


class TextTower(nnx.Module):
    """Causal transformer over token ids."""

    def __init__(self, config: ModelConfig):
        width = config.text_width
        self.config = config
        self.embedding = drawn((config.vocab_size, width), 0.02)
        self.position = drawn((config.context_length, width), 0.01)
        self.blocks = Blocks(
            width, config.text_layers, compute=config, activation=config.activation
        )
        self.ln_final = LayerNorm(width)
        self.projection = drawn((width, config.embed_dim), width**-0.5)

    def __call__(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Encode token ids as projected float32 tokens."""
        return self._projected(self.blocks(self._embedded(ids), mask="causal"))

    def attended(
        self, ids: Int[Array, "b l"]
    ) -> tuple[Float[Array, "b l d"], Float[Array, "b l"]]:
        """Also tell what the end token attends to, see `Blocks.attended`."""
        end = jnp.argmax(ids, axis=1)  # the end token has the largest id
        x, attention = self.blocks.attended(self._embedded(ids), end, mask="causal")
        return self._projected(x), attention

    def _projected(self, x: Float[Array, "b l e"]) -> Float[Array, "b l d"]:
        dtype = compute_dtype(self.config.dtype, self.embedding[...])
        x = self.ln_final(x).astype(dtype)
        return project(x, self.projection[...], self.config)

    def _embedded(self, ids: Int[Array, "b l"]) -> Float[Array, "b l e"]:
        self._check(ids)
        return self.embedding[...][ids] + self.position[: ids.shape[1]]

    def _check(self, ids: Int[Array, "b l"]) -> None:
        if ids.shape[1] > self.config.context_length:
            raise ValueError(
                f"The text tower was built for {self.config.context_length} positions "
                f"and got {ids.shape[1]}: tokenise to that length, or build the model "
                f"with that context_length."
            )
