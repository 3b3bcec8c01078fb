# SPDX-License-Identifier: Apache-2.0
"""tests/reference/{fmfa,rde}.npz as our model sees them: config, parameters, inputs.

The mapping of names is written out here, apart from the product's tables, so that one
checks the other.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from fmfa_jax.models import ModelConfig

REFERENCE = Path(__file__).parent / "reference"

# Official name without layer numbers -> our path, and what to do with the axes.
LAYER_NAMES = {
    "attn.in_proj_weight": ("attention/qkv/kernel", "transpose"),
    "attn.in_proj_bias": ("attention/qkv/bias", "keep"),
    "attn.out_proj.weight": ("attention/out/kernel", "transpose"),
    "attn.out_proj.bias": ("attention/out/bias", "keep"),
    "ln_1.weight": ("ln_1/scale", "keep"),
    "ln_1.bias": ("ln_1/bias", "keep"),
    "ln_2.weight": ("ln_2/scale", "keep"),
    "ln_2.bias": ("ln_2/bias", "keep"),
    "mlp.c_fc.weight": ("mlp/up/kernel", "transpose"),
    "mlp.c_fc.bias": ("mlp/up/bias", "keep"),
    "mlp.c_proj.weight": ("mlp/down/kernel", "transpose"),
    "mlp.c_proj.bias": ("mlp/down/bias", "keep"),
}
STACKS = {
    "base_model.visual.transformer": "image_tower",
    "base_model.transformer": "text_tower",
    "cross_modal_transformer": "irr",
}
NAMES = {
    "base_model.visual.class_embedding": ("image_tower/class_token", "keep"),
    "base_model.visual.positional_embedding": ("image_tower/position", "keep"),
    "base_model.visual.conv1.weight": ("image_tower/patch/kernel", "convolution"),
    "base_model.visual.proj": ("image_tower/projection", "keep"),
    "base_model.token_embedding.weight": ("text_tower/embedding", "keep"),
    "base_model.positional_embedding": ("text_tower/position", "keep"),
    "base_model.text_projection": ("text_tower/projection", "keep"),
    "classifier.weight": ("classifier/kernel", "transpose"),
    "classifier.bias": ("classifier/bias", "keep"),
    "cross_attn.in_proj_weight": ("irr/cross_attention/qkv/kernel", "transpose"),
    "cross_attn.in_proj_bias": ("irr/cross_attention/qkv/bias", "keep"),
    "cross_attn.out_proj.weight": ("irr/cross_attention/out/kernel", "transpose"),
    "cross_attn.out_proj.bias": ("irr/cross_attention/out/bias", "keep"),
    "mlm_head.dense.weight": ("irr/head/dense/kernel", "transpose"),
    "mlm_head.dense.bias": ("irr/head/dense/bias", "keep"),
    "mlm_head.fc.weight": ("irr/head/fc/kernel", "transpose"),
    "mlm_head.fc.bias": ("irr/head/fc/bias", "keep"),
}
NORMS = {
    "base_model.visual.ln_pre": "image_tower/ln_pre",
    "base_model.visual.ln_post": "image_tower/ln_post",
    "base_model.ln_final": "text_tower/ln_final",
    "ln_pre_t": "irr/ln_text",
    "ln_pre_i": "irr/ln_image",
    "ln_post": "irr/ln_post",
    "mlm_head.ln": "irr/head/ln",
}
TSE = {"visul_emb_layer": ("image", "fc"), "texual_emb_layer": ("text", "linear")}
for official, (side, skip) in TSE.items():
    layers = {skip: "skip", "mlp.layers.0": "up", "mlp.layers.1": "down"}
    for layer, ours in layers.items():
        NAMES[f"{official}.{layer}.weight"] = (f"tse/{side}/{ours}/kernel", "transpose")
        NAMES[f"{official}.{layer}.bias"] = (f"tse/{side}/{ours}/bias", "keep")
    norm = {"weight": "scale", "bias": "bias"}
    norm |= {"running_mean": "mean", "running_var": "variance"}
    for name, ours in norm.items():
        NAMES[f"{official}.mlp.bns.0.{name}"] = (f"tse/{side}/norm/{ours}", "keep")
# Of RDE: never called, and a count that nothing reads.
UNUSED = re.compile(r"visul_emb_layer\.linear\..*|.*(\.bns\.1\.|\.num_batches_).*")
for official, ours in NORMS.items():
    NAMES[f"{official}.weight"] = (f"{ours}/scale", "keep")
    NAMES[f"{official}.bias"] = (f"{ours}/bias", "keep")


@dataclass(frozen=True)
class Place:
    """Where an official parameter lives: a path, a layer of it, and its axes there."""

    path: str
    layer: int | None
    axes: str

    def to_ours(self, value: np.ndarray) -> np.ndarray:
        if self.axes == "convolution":
            return value.transpose(2, 3, 1, 0)
        return value.T if self.axes == "transpose" else value

    def to_official(self, tree: dict) -> np.ndarray:
        """The official tensor out of our nested dictionary."""
        for key in self.path.split("/"):
            tree = tree[key]
        value = np.asarray(tree if self.layer is None else tree[self.layer])
        if self.axes == "convolution":
            return value.transpose(3, 2, 0, 1)
        return value.T if self.axes == "transpose" else value


def place(name: str) -> Place:
    """Find an official name's place; an unknown name is a KeyError."""
    stacked = re.fullmatch(r"(.*)\.resblocks\.(\d+)\.(.*)", name)
    if stacked is None:
        path, axes = NAMES[name]
        return Place(path, None, axes)
    path, axes = LAYER_NAMES[stacked[3]]
    return Place(f"{STACKS[stacked[1]]}/blocks/{path}", int(stacked[2]), axes)


@cache
def reference_arrays(name: str) -> dict[str, np.ndarray]:
    """Every array of tests/reference/NAME.npz, read once."""
    with np.load(REFERENCE / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def group(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays under `prefix`, by the rest of their keys."""
    start = prefix + "/"
    found = {k[len(start) :]: v for k, v in arrays.items() if k[: len(start)] == start}
    assert found, f"nothing under {prefix} in the reference file"
    return found


@dataclass(frozen=True)
class Case:
    """The reference file: every array by its key, and what the model needs."""

    arrays: dict[str, np.ndarray]
    config: ModelConfig
    params: dict

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays under `prefix`, by the rest of their keys."""
        return group(self.arrays, prefix)


def _config(meta: dict) -> ModelConfig:
    return ModelConfig(
        image_size=tuple(meta["img"]),
        patch=meta["patch"],
        stride=meta["stride"],
        image_width=meta["vw"],
        image_layers=meta["vl"],
        context_length=meta["ctx"],
        vocab_size=meta["vocab"],
        text_width=meta["tw"],
        text_layers=meta["tl"],
        embed_dim=meta["embed"],
        classes=meta.get("classes", 0),
        irr_layers=meta.get("cmt", 0),
        tse_width=meta.get("tse", 0),
        tse_ratio=meta.get("ratio", 0.3),
    )


def _params(official: dict[str, np.ndarray], *, dtype: str) -> dict:
    layers: dict[str, dict[int | None, np.ndarray]] = {}
    for name, value in official.items():
        spot = place(name)
        layers.setdefault(spot.path, {})[spot.layer] = spot.to_ours(value.astype(dtype))
    tree: dict = {}
    for path, values in layers.items():
        *parents, leaf = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        stacked = [values[i] for i in sorted(values, key=lambda i: i or 0)]
        node[leaf] = values[None] if None in values else np.stack(stacked)
    return tree


@cache
def reference_case(dtype: str = "float32", name: str = "fmfa") -> Case:
    """Read a file once; parameters in `dtype` (they are stored exactly)."""
    arrays = reference_arrays(name)
    stored = group(arrays, "param")
    official = {key: stored[key] for key in stored if not UNUSED.fullmatch(key)}
    config = _config(json.loads(str(arrays["meta"])))
    return Case(arrays, config, _params(official, dtype=dtype))
