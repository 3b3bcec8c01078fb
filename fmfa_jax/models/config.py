# SPDX-License-Identifier: Apache-2.0
"""Sizes of a model, and the presets that have a name."""

from dataclasses import dataclass, replace
from types import MappingProxyType

HEAD_WIDTH = 64
DTYPES = ("float32", "bfloat16")
REMATS = ("none", "elementwise", "full")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What fixes every parameter's shape, and how the towers compute.

    Attributes:
        image_size: height and width of the pictures in pixels.
        patch: side of a square patch in pixels.
        stride: step between patches in pixels, 1..patch; smaller ones overlap.
        image_width: width of the image tower; one head per 64.
        image_layers: blocks of the image tower.
        context_length: text positions, start and end tokens included.
        vocab_size: rows of the token embedding; the last id ends a caption.
        text_width: width of the text tower; one head per 64.
        text_layers: blocks of the text tower.
        embed_dim: joint width d of both towers' outputs.
        classes: identities of the ID head; 0 leaves the head out.
        irr_layers: blocks of the interaction encoder; 0 leaves it out, together
            with the masked-token head.
        dtype: "float32" or "bfloat16", the operands of the towers' products.
            Parameters, norms and outputs stay float32 (float64 parameters are
            computed in float64).
        remat: what the backward pass computes again instead of storing it: "none";
            "elementwise", of each block all but the products of matrices, which is
            most of the memory and little of the work; "full", each whole block.
    """

    image_size: tuple[int, int]
    patch: int
    stride: int
    image_width: int
    image_layers: int
    context_length: int
    vocab_size: int
    text_width: int
    text_layers: int
    embed_dim: int
    classes: int = 0
    irr_layers: int = 0
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self):
        problems = [*self._size_problems(), *self._choice_problems()]
        if problems:
            raise ValueError("ModelConfig: " + "; ".join(problems))

    def _size_problems(self) -> list[str]:
        """What is wrong with the numbers, one sentence each."""
        problems = []
        for name in ("image_width", "text_width", "embed_dim"):
            width = getattr(self, name)
            if width < HEAD_WIDTH or width % HEAD_WIDTH:
                problems.append(f"{name} must be a multiple of {HEAD_WIDTH}: {width}")
        for name in ("image_layers", "text_layers", "context_length", "vocab_size"):
            if getattr(self, name) < 1:
                problems.append(f"{name} must be at least 1: {getattr(self, name)}")
        for name in ("classes", "irr_layers"):
            if getattr(self, name) < 0:
                problems.append(f"{name} must be at least 0: {getattr(self, name)}")
        if not 1 <= self.stride <= self.patch:
            problems.append(f"stride must be in 1..{self.patch} (patch): {self.stride}")
        if min(self.image_size) < self.patch:
            problems.append(
                f"image_size {self.image_size} is smaller than the patch {self.patch}"
            )
        return problems

    def _choice_problems(self) -> list[str]:
        """What is wrong with the named choices, one sentence each."""
        problems = []
        if self.dtype not in DTYPES:
            problems.append(f"dtype must be one of {DTYPES}: {self.dtype!r}")
        if self.remat not in REMATS:
            problems.append(f"remat must be one of {REMATS}: {self.remat!r}")
        return problems

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_size
        rows = (height - self.patch) // self.stride + 1
        columns = (width - self.patch) // self.stride + 1
        return rows, columns

    @property
    def image_tokens(self) -> int:
        """Tokens of one picture: the class token and every patch."""
        rows, columns = self.grid
        return 1 + rows * columns


_VIT_B_16 = ModelConfig(
    image_size=(384, 128),
    patch=16,
    stride=16,
    image_width=768,
    image_layers=12,
    context_length=77,
    vocab_size=49408,
    text_width=512,
    text_layers=12,
    embed_dim=512,
)


def _preset(**changes: int | tuple[int, int]) -> ModelConfig:
    return ModelConfig(**{**vars(_VIT_B_16), **changes})


# The three sizes that CLIP was published in, at the input size of this field, and
# one that trains on a CPU in minutes.
PRESETS: MappingProxyType[str, ModelConfig] = MappingProxyType(
    {
        "vit-b-16": _VIT_B_16,
        "vit-b-32": _preset(patch=32, stride=32),
        "vit-l-14": _preset(
            patch=14,
            stride=14,
            image_width=1024,
            image_layers=24,
            text_width=768,
            embed_dim=768,
        ),
        "demo": _preset(
            image_size=(64, 32),
            patch=8,
            stride=8,
            image_width=128,
            image_layers=4,
            context_length=64,
            vocab_size=512,
            text_width=128,
            text_layers=2,
            embed_dim=128,
        ),
    }
)


def towers_of(config: ModelConfig) -> ModelConfig:
    """The same model without any head."""
    return replace(config, classes=0, irr_layers=0)
