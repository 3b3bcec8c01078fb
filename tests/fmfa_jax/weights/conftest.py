# SPDX-License-Identifier: Apache-2.0
"""PyTorch modules of the official shape, written with torch's own layers."""

from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

# Two heads in the image tower, one in the text tower; all sizes differ.
SIZES = SimpleNamespace(
    image=(32, 16),
    patch=8,
    stride=8,
    width=128,
    layers=2,
    context=10,
    vocab=48,
    text_width=64,
    text_layers=3,
    embed=64,
    classes=5,
    irr_layers=2,
    tse=96,
)


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1 = nn.LayerNorm(width)
        layers = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", QuickGELU())]
        layers.append(("c_proj", nn.Linear(4 * width, width)))
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.resblocks = nn.Sequential(*[Block(width) for _ in range(layers)])

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, size, grid):
        super().__init__()
        patch, width = size.patch, size.width
        self.conv1 = nn.Conv2d(3, width, patch, size.stride, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        positions = torch.randn(1 + grid[0] * grid[1], width)
        self.positional_embedding = nn.Parameter(positions)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, size.layers)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, size.embed) * width**-0.5)

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(x.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([first, x], 1) + self.positional_embedding)
        x = self.transformer(x.transpose(0, 1)).transpose(0, 1)
        return self.ln_post(x) @ self.proj


class CLIP(nn.Module):
    """OpenAI's names: what the TorchScript archives hold."""

    def __init__(self, size=SIZES, grid=None, extras=False):
        super().__init__()
        grid = grid or tuple((n - size.patch) // size.stride + 1 for n in size.image)
        self.visual = Visual(size, grid)
        self.transformer = Transformer(size.text_width, size.text_layers)
        self.token_embedding = nn.Embedding(size.vocab, size.text_width)
        positions = torch.randn(size.context, size.text_width)
        self.positional_embedding = nn.Parameter(positions)
        self.ln_final = nn.LayerNorm(size.text_width)
        self.text_projection = nn.Parameter(torch.randn(size.text_width, size.embed))
        if extras:
            self.logit_scale = nn.Parameter(torch.tensor(4.6))
            self.register_buffer("input_resolution", torch.tensor(size.image[0]))
            self.register_buffer("context_length", torch.tensor(size.context))
            self.register_buffer("vocab_size", torch.tensor(size.vocab))

    def encode_image(self, pixels):
        return self.visual(pixels)

    def encode_text(self, ids):
        length = ids.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        x = self.token_embedding(ids) + self.positional_embedding
        x = self.transformer(x.transpose(0, 1), mask).transpose(0, 1)
        return self.ln_final(x) @ self.text_projection

    def forward(self, pixels, ids):
        return self.encode_image(pixels), self.encode_text(ids)


class Official(nn.Module):
    """The names of IRRA's and FMFA's checkpoints, heads included."""

    def __init__(self, size=SIZES):
        super().__init__()
        embed = size.embed
        self.base_model = CLIP(size)
        self.classifier = nn.Linear(embed, size.classes)
        self.cross_attn = nn.MultiheadAttention(embed, embed // 64, batch_first=True)
        self.cross_modal_transformer = Transformer(embed, size.irr_layers)
        self.ln_pre_t = nn.LayerNorm(embed)
        self.ln_pre_i = nn.LayerNorm(embed)
        self.ln_post = nn.LayerNorm(embed)
        layers = [("dense", nn.Linear(embed, embed)), ("gelu", QuickGELU())]
        layers += [("ln", nn.LayerNorm(embed)), ("fc", nn.Linear(embed, size.vocab))]
        self.mlm_head = nn.Sequential(OrderedDict(layers))

    def masked_logits(self, text, image):
        image = self.ln_pre_i(image)
        x = self.cross_attn(self.ln_pre_t(text), image, image, need_weights=False)[0]
        x = self.cross_modal_transformer(x.transpose(0, 1)).transpose(0, 1)
        return self.mlm_head(self.ln_post(x))


class SelectionMLP(nn.Module):
    def __init__(self, inputs, wide):
        super().__init__()
        layers = [nn.Linear(inputs, wide // 2), nn.Linear(wide // 2, wide)]
        self.layers = nn.ModuleList(layers)
        self.bns = nn.ModuleList([nn.BatchNorm1d(wide // 2), nn.BatchNorm1d(wide)])

    def forward(self, x):
        rows = self.bns[0](self.layers[0](x).flatten(0, 1)).view(*x.shape[:2], -1)
        return self.layers[1](torch.relu(rows))


class SelectionHead(nn.Module):
    """One of RDE's heads: `skip` is the layer around its MLP, and may lack a use."""

    def __init__(self, embed, wide, skip, *unused):
        super().__init__()
        for name in (skip, *unused):
            self.add_module(name, nn.Linear(embed, wide))
        self.mlp, self.skip = SelectionMLP(embed, wide), skip

    def forward(self, x):
        return (self.mlp(x) + self.get_submodule(self.skip)(x)).max(1)[0]


class RDE(nn.Module):
    """The names of RDE's checkpoints, with what its modules hold and never call."""

    def __init__(self, size=SIZES):
        super().__init__()
        self.base_model = CLIP(size)
        self.visul_emb_layer = SelectionHead(size.embed, size.tse, "fc", "linear")
        self.texual_emb_layer = SelectionHead(size.embed, size.tse, "linear")
        for name, buffer in self.named_buffers():
            if "running" in name:  # fresh statistics would hide mistakes
                buffer.uniform_(0.5, 1.5)


@pytest.fixture(scope="session")
def torch_clip():
    """The sizes and the module classes; a fixed seed for their weights."""

    def seeded(build):
        def make(*args, **kwargs):
            torch.manual_seed(3)
            model = build(*args, **kwargs).eval()
            with torch.no_grad():
                # Fresh biases are zero and fresh scales one: they would hide mistakes.
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
            return model

        return make

    builders = {"clip": CLIP, "official": Official, "rde": RDE}
    return SimpleNamespace(size=SIZES, **{n: seeded(b) for n, b in builders.items()})


@pytest.fixture(scope="session")
def inputs():
    """Pictures and captions, as ours and as torch takes them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, *SIZES.image, 3), dtype=np.uint8)
    ids = rng.integers(1, SIZES.vocab - 3, (3, SIZES.context)).astype(np.int32)
    for row, length in enumerate((SIZES.context, 4, 7)):
        ids[row, 0], ids[row, length - 1] = SIZES.vocab - 2, SIZES.vocab - 1
        ids[row, length:] = 0
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    pixels = ((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    return SimpleNamespace(
        images=images,
        ids=ids,
        pixels=torch.tensor(np.ascontiguousarray(pixels)),
        torch_ids=torch.tensor(ids.astype(np.int64)),
    )


@pytest.fixture(scope="session")
def official_state(torch_clip):
    """A whole official state dict; tests copy it before they change it."""
    return torch_clip.official().state_dict()
