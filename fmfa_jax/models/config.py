# SPDX-License-Identifier: Apache-2.0
"""Sizes of a model, its function, how it computes, and named presets."""

from dataclasses import asdict, dataclass, replace
from types import MappingProxyType

HEAD_WIDTH = 64
DTYPES = ("float32", "bfloat16")
PRECISIONS = ("highest", "high", "default")
PRODUCTS = ("float32", "compute")
ATTENTIONS = ("xla", "cudnn")
ACTIVATIONS = ("quick_gelu", "gelu")
REMATS = ("none", "elementwise", "full")


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a model computes: rounding, memory and speed, but not what is learned.

    Attributes:
        dtype: "float32" or "bfloat16", the dtype of matmul operands in the towers.
            Parameters, norms and outputs stay float32 (float64 parameters compute
            in float64).
        precision: What accelerators make of float32 products: "highest", float32
            itself; "high", about 22 bits; "default", TF32 on NVIDIA and bfloat16 on
            TPUs, as fast as it gets. A CPU always computes in float32.
        products: Dtype in which products inside a block leave the matrix unit, which
            sums in float32: "float32", rounded after the bias; "compute", rounded
            before it, with half the memory traffic where XLA does not fuse the two.
        attention: "xla", our own; "cudnn", NVIDIA's fused kernel, which wants bfloat16.
        remat: What the backward pass recomputes instead of storing: "none";
            "elementwise", everything in a block but its matmuls, which saves most of
            the memory for little work; "full", whole blocks.
        scan_unroll: Blocks in one iteration of the loop over blocks.
        platform: JAX's name for the kind of device, which the losses size their blocks
            by.
    """

    dtype: str = "float32"
    precision: str = "highest"
    products: str = "float32"
    attention: str = "xla"
    remat: str = "none"
    scan_unroll: int = 1
    platform: str = "cpu"

    def compute_problems(self) -> list[str]:
        """Describe each invalid choice in a sentence."""
        choices = {
            "dtype": DTYPES,
            "precision": PRECISIONS,
            "products": PRODUCTS,
            "attention": ATTENTIONS,
            "remat": REMATS,
        }
        problems = [
            f"{name} must be one of {known}: {getattr(self, name)!r}"
            for name, known in choices.items()
            if getattr(self, name) not in known
        ]
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            problems.append(f"attention=cudnn wants dtype=bfloat16, got {self.dtype}")
        if self.scan_unroll < 1:
            problems.append(f"scan_unroll must be at least 1: {self.scan_unroll}")
        return problems


PORTABLE = Compute()
"""What any device can do: float32, and nothing recomputed."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Compute):
    """What is learned, its sizes and its function, and how the model computes.

    Attributes:
        image_size: Height and width of the images in pixels.
        patch: Side of a square patch in pixels.
        stride: Step between patches in pixels, 1..patch; less than `patch` overlaps.
        image_width: Width of the image tower, with one attention head per 64.
        image_layers: Number of blocks in the image tower.
        context_length: Number of text positions, including start and end tokens.
        vocab_size: Rows of the token embedding; the last id ends a caption.
        text_width: Width of the text tower, with one attention head per 64.
        text_layers: Number of blocks in the text tower.
        embed_dim: Width d of the space that both towers map into.
        classes: Number of identities in the ID head; 0 omits the head.
        irr_layers: Number of blocks in the interaction encoder; 0 omits it together
            with the masked-token head.
        tse_width: Width e of the token selection embedding; 0 omits its head.
        tse_ratio: Share of patches and words that it selects.
        activation: Between the two layers of the towers' MLPs: "quick_gelu", as OpenAI
            trained CLIP; "gelu", the exact one, as open_clip trains by default. Heads
            have QuickGELU in either case.
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
    tse_width: int = 0
    tse_ratio: float = 0.3
    activation: str = "quick_gelu"

    def __post_init__(self):
        problems = [*self._size_problems(), *self.compute_problems()]
        if problems:
            raise ValueError("ModelConfig: " + "; ".join(problems))

    def _size_problems(self) -> list[str]:
        """Describe each invalid size, or function, in a sentence."""
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
        if self.tse_width < 0 or self.tse_width % 2:
            problems.append(f"tse_width must be even and not < 0: {self.tse_width}")
        if not 0 < self.tse_ratio <= 1:
            problems.append(f"tse_ratio must be in (0, 1]: {self.tse_ratio}")
        if not 1 <= self.stride <= self.patch:
            problems.append(f"stride must be in 1..{self.patch} (patch): {self.stride}")
        if min(self.image_size) < self.patch:
            problems.append(
                f"image_size {self.image_size} is smaller than the patch {self.patch}"
            )
        if self.activation not in ACTIVATIONS:
            problems.append(
                f"activation must be one of {ACTIVATIONS}: {self.activation!r}"
            )
        return problems

    @property
    def portable(self) -> "ModelConfig":
        """The same model, computed as any device can; see `PORTABLE`."""
        return replace(self, **asdict(PORTABLE))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        height, width = self.image_size
        rows = (height - self.patch) // self.stride + 1
        columns = (width - self.patch) // self.stride + 1
        return rows, columns

    @property
    def feature_width(self) -> int:
        """Width of the features that pictures are found by."""
        return self.embed_dim + self.tse_width

    @property
    def image_tokens(self) -> int:
        """Number of tokens per image: the class token and one per patch."""
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


# Three published sizes of CLIP at the image size usual for person retrieval, and one
# that trains on a CPU in minutes.
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
