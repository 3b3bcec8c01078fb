# SPDX-License-Identifier: Apache-2.0
"""FMFA's training model in eager PyTorch, as the released code computes it.

CLIP towers, the interaction encoder and vocabulary projection over all positions, and
one identity classifier. The parameters have the official names, so that official state
dicts load, and those of `fmfa_jax.weights export --to official`. There are two text
passes, one for the masked captions, even if both have the same captions.

Written from the equations of arXiv 2103.00020 (CLIP), CVPR 2023 "Cross-Modal Implicit
Relation Reasoning and Aligning" (IRR) and arXiv 2509.13754 (FMFA). It does not import
JAX, so that a process that measures it holds only one framework.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers import losses

HEAD_WIDTH = 64
# Statistics of CLIP's training pictures: red, green, blue.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Everything that determines the parameters' shapes, named as in ModelConfig."""

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
    classes: int
    irr_layers: int

    @property
    def patches(self) -> int:
        """Number of patches in a picture."""
        height, width = self.image_size
        rows = (height - self.patch) // self.stride + 1
        return rows * ((width - self.patch) // self.stride + 1)


def normalized(images: Tensor) -> Tensor:
    """Convert bytes [b,h,w,3] to the image tower's input [b,3,h,w]."""
    mean, std = images.new_tensor([MEAN, STD], dtype=torch.float32)
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


class QuickGELU(nn.Module):
    """`x * sigmoid(1.702 x)`."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to a tensor of any shape."""
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head attention with heads of width 64, by torch's fused function."""

    def __init__(self, width: int):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, *, mask: str) -> Tensor:
        """Let x [b,t,w] attend to `context` [b,s,w], or to itself."""
        if context is None:
            joint = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
            query, key, value = joint.chunk(3, dim=-1)
        else:
            width = x.shape[-1]
            first, rest = self.in_proj_weight.split([width, 2 * width])
            bias, biases = self.in_proj_bias.split([width, 2 * width])
            query = functional.linear(x, first, bias)
            key, value = functional.linear(context, rest, biases).chunk(2, dim=-1)
        heads = [
            y.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)
            for y in (query, key, value)
        ]
        mixed = functional.scaled_dot_product_attention(
            *heads, is_causal=mask == "causal"
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int):
        super().__init__()
        self.attn = Attention(width)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, *, mask: str) -> Tensor:
        """[b,t,w] -> [b,t,w]."""
        x = x + self.attn(self.ln_1(x), mask=mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width) for _ in range(layers)])

    def forward(self, x: Tensor, *, mask: str) -> Tensor:
        """[b,t,w] -> [b,t,w]."""
        for block in self.resblocks:
            x = block(x, mask=mask)
        return x


class ImageTower(nn.Module):
    """A vision transformer with all tokens projected."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width = sizes.image_width
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + sizes.patches, width))
        self.proj = nn.Parameter(torch.zeros(width, sizes.embed_dim))
        self.conv1 = nn.Conv2d(3, width, sizes.patch, stride=sizes.stride, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, sizes.image_layers)
        self.ln_post = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """[b,3,h,w] -> [b,n,d], with the class token first."""
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x), mask="none")
        return self.ln_post(x) @ self.proj


class Clip(nn.Module):
    """Both towers; the text tower's parts are direct members, as in CLIP."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width = sizes.text_width
        self.visual = ImageTower(sizes)
        self.positional_embedding = nn.Parameter(
            torch.zeros(sizes.context_length, width)
        )
        self.text_projection = nn.Parameter(torch.zeros(width, sizes.embed_dim))
        self.transformer = Transformer(width, sizes.text_layers)
        self.token_embedding = nn.Embedding(sizes.vocab_size, width)
        self.ln_final = nn.LayerNorm(width)

    def encode_text(self, ids: Tensor) -> Tensor:
        """[b,l] -> [b,l,d]."""
        x = self.token_embedding(ids) + self.positional_embedding
        x = self.transformer(x, mask="causal")
        return self.ln_final(x) @ self.text_projection


class TokenHead(nn.Module):
    """A dense layer, QuickGELU, LayerNorm, then scores over the vocabulary."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width = sizes.embed_dim
        self.dense = nn.Linear(width, width)
        self.gelu = QuickGELU()
        self.ln = nn.LayerNorm(width)
        self.fc = nn.Linear(width, sizes.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        """[b,l,d] -> [b,l,v]."""
        return self.fc(self.ln(self.gelu(self.dense(x))))


class FMFA(nn.Module):
    """The towers and heads of FMFA."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width = sizes.embed_dim
        self.base_model = Clip(sizes)
        self.classifier = nn.Linear(width, sizes.classes)
        self.cross_attn = Attention(width)
        self.cross_modal_transformer = Transformer(width, sizes.irr_layers)
        self.ln_pre_t = nn.LayerNorm(width)
        self.ln_pre_i = nn.LayerNorm(width)
        self.ln_post = nn.LayerNorm(width)
        self.mlm_head = TokenHead(sizes)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute tokens, global features and all scores.

        Args:
            batch: `pixels` [b,3,h,w], `ids` [b,l] and their masked copy `masked`.
        """
        image_tokens = self.base_model.visual(batch["pixels"])
        text_tokens = self.base_model.encode_text(batch["ids"])
        image, text = image_tokens[:, 0], end_tokens(text_tokens, batch["ids"])
        return {
            "image_tokens": image_tokens,
            "text_tokens": text_tokens,
            "image_global": image,
            "text_global": text,
            "image_logits": self.classifier(image),
            "text_logits": self.classifier(text),
            "masked_logits": self._guess(image_tokens, batch["masked"]),
        }

    def _guess(self, image_tokens: Tensor, masked: Tensor) -> Tensor:
        """Return vocabulary scores for every position of the masked captions."""
        text = self.ln_pre_t(self.base_model.encode_text(masked))
        x = self.cross_attn(text, self.ln_pre_i(image_tokens), mask="none")
        x = self.cross_modal_transformer(x, mask="none")
        return self.mlm_head(self.ln_post(x))


def end_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Return the token at each caption's end, which has the largest id."""
    return tokens[torch.arange(len(ids), device=ids.device), ids.argmax(dim=-1)]


def objective(out: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return A-SDM, ID, the masked-token loss and EFA, each with weight 1."""
    person = batch["person"]
    image, text = out["image_global"].float(), out["text_global"].float()
    scores = out["image_logits"].float(), out["text_logits"].float()
    return {
        "a_sdm": losses.a_sdm(image, text, person),
        "id": sum(functional.cross_entropy(x, person) for x in scores) / 2,
        "mlm": functional.cross_entropy(
            out["masked_logits"].float().flatten(0, 1),
            batch["labels"].flatten(),
            ignore_index=0,
        ),
        "efa": losses.efa(out["text_tokens"].float(), out["image_tokens"].float()),
    }


def adam(model: nn.Module, *, lr: float = 1e-5) -> torch.optim.Adam:
    """Return FMFA's optimizer, with coupled weight decay and a large epsilon."""
    return torch.optim.Adam(
        model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-3, weight_decay=4e-5
    )


def train_step(
    model: FMFA,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    *,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Update the model once; return the losses before the update, and their sum.

    Args:
        model: The model to update.
        optimizer: See `adam`.
        batch: `pixels`, `ids`, `masked`, `labels` and `person`.
        dtype: "float32", or "bfloat16" to run the forward pass under `torch.autocast`;
            the losses, which are scaled by 50, stay in float32, as ours do.
    """
    optimizer.zero_grad(set_to_none=True)
    device = batch["ids"].device.type
    half = dtype == "bfloat16"
    with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
        out = model(batch)
    values = objective(out, batch)
    values["total"] = sum(values.values())
    values["total"].backward()
    optimizer.step()
    return {name: value.detach() for name, value in values.items()}
