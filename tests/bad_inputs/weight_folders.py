# SPDX-License-Identifier: Apache-2.0
"""Folders of weights: files by name -> message. What is no bytes is written as JSON."""

import json
from pathlib import Path
from typing import Any

from fmfa_jax import weights
from tests.bad_inputs.programs import safetensors
from tests.bad_inputs.table import Reader


def tensors(*names: str, shape: tuple[int, ...] = (6,)) -> bytes:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 24]}
    places = {
        name: entry | {"data_offsets": [24 * i, 24 * i + 24]}
        for i, name in enumerate(names)
    }
    return safetensors(places, bytes(24 * len(names)))


HUGGING_FACE = tensors(
    "vision_model.embeddings.class_embedding",
    "text_model.embeddings.token_embedding.weight",
    shape=(3, 2),
)
OPEN_CLIP = tensors("visual.class_embedding", "token_embedding.weight")
DEEP = b"[" * 900 + b"]" * 900
INDEX = "model.safetensors.index.json"


def hugging_face(config: Any, **others: Any) -> dict[str, Any]:
    return {"model.safetensors": HUGGING_FACE, "config.json": config, **others}


def vision(**changes: Any) -> dict[str, Any]:
    return hugging_face({"vision_config": changes, "text_config": {}})


def raw_vision(key: str, value: bytes) -> dict[str, Any]:
    return hugging_face(b'{"vision_config":{"%s":%s}}' % (key.encode(), value))


def open_clip(vision: Any = None, text: Any = None, **others: Any) -> dict[str, Any]:
    model = {"embed_dim": 64, "vision_cfg": vision or {}, "text_cfg": text or {}}
    whole = {"model_cfg": model | others}
    return {"open_clip_model.safetensors": OPEN_CLIP, "open_clip_config.json": whole}


def raw_open_clip(config: bytes) -> dict[str, Any]:
    return open_clip() | {"open_clip_config.json": config}


def index(places: Any, **files: Any) -> dict[str, Any]:
    return {INDEX: {"weight_map": places}, **files}


ROWS = [
    ({}, "no weights in the folder"),
    ({"model.safetensors": b""}, "is empty"),
    ({"model.safetensors": HUGGING_FACE}, "need the config.json beside them"),
    (hugging_face(b"{"), "is not a CLIP config"),
    (hugging_face(b"\xff\xfe"), "is not a CLIP config ('utf-8' codec"),
    (hugging_face(b"[" * 10**5), "nested too deep"),
    (hugging_face(b" " * (2 * 2**20 + 1)), "wanted at most 2097152 bytes"),
    (hugging_face([]), "is not a CLIP config, but a list"),
    (hugging_face(None), "is not a CLIP config, but a NoneType"),
    (hugging_face({"model_type": "siglip"}), "this is Hugging Face's siglip"),
    (hugging_face({"model_type": "a" * 9999}), "this is Hugging Face's aaa"),
    (hugging_face({"model_type": [[["x"]]]}), "this is Hugging Face's [[['x']]]"),
    (hugging_face({"vision_config": 5}), "is not a CLIP config"),
    (hugging_face({"vision_config": "abc"}), "is not a CLIP config"),
    (hugging_face({"vision_config_dict": [1]}), "is not a CLIP config"),
    (vision(patch_size=0), "wanted 1 to 8192 pixels, got 0"),
    (vision(patch_size=-1), "wanted 1 to 8192 pixels, got -1"),
    (vision(patch_size=2.5), "wanted 1 to 8192 pixels, got 2.5"),
    (vision(patch_size=None), "wanted 1 to 8192 pixels, got None"),
    (vision(patch_size=[16, 16]), "wanted 1 to 8192 pixels, got [16, 16]"),
    (vision(image_size=10**9), "wanted 1 to 8192 pixels, got 1000000000"),
    (vision(image_size="224"), "wanted 1 to 8192 pixels, got 224"),
    (raw_vision("image_size", DEEP), "wanted 1 to 8192 pixels, got [[[[["),
    (raw_vision("image_size", b"9" * 5000), "is not a CLIP config (Exceeds"),
    (raw_vision("image_size", b"1e999"), "wanted 1 to 8192 pixels, got inf"),
    (vision(fmfa_image_size=5), "is not a CLIP config"),
    (vision(fmfa_image_size=[224, 224, 3]), "is not a CLIP config (too many values"),
    (vision(fmfa_image_size=[32, 32]), "fmfa_image_size 32 x 32 does not fit its grid"),
    (vision(fmfa_image_size=[224, 31]), "224 x 31 does not fit its grid"),
    (vision(hidden_size="768"), "is not a CLIP config"),
    (vision(hidden_size=[768]), "is not a CLIP config"),
    (vision(hidden_size=1280), "num_attention_heads is 12, expected 20"),
    (vision(num_attention_heads=16), "num_attention_heads is 16, expected 12"),
    (raw_vision("num_attention_heads", DEEP), "num_attention_heads is [[[["),
    (vision(layer_norm_eps=1e-12), "layer_norm_eps is 1e-12, expected 1e-05"),
    (vision(hidden_act="relu"), "hidden_act is relu, expected quick_gelu or gelu"),
    (vision(hidden_act=["gelu"]), "hidden_act is ['gelu'], expected"),
    (raw_vision("hidden_act", DEEP), "hidden_act is [[[["),
    (vision(hidden_act="gelu"), "its towers have two activations"),
    (
        hugging_face({"text_config": {"eos_token_id": 1}}),
        "eos_token_id is 1, expected the last of 3 tokens",
    ),
    (
        hugging_face({"text_config": {"eos_token_id": {"a": [1]}}}),
        "eos_token_id is {'a': [1]}, expected the last",
    ),
    (
        hugging_face({}, **{"preprocessor_config.json": {"image_mean": [0, 0, 0]}}),
        "image_mean is [0, 0, 0], expected CLIP's",
    ),
    (
        hugging_face({}, **{"preprocessor_config.json": {"image_std": 5}}),
        "is not a CLIP config ('int' object is not iterable",
    ),
    (
        hugging_face({}, **{"preprocessor_config.json": b"{"}),
        "is not a preprocessor config",
    ),
    (hugging_face({"text_config": {"eos_token_id": 2}}), "does not fit this model"),
    (raw_open_clip(b"{"), "is not an open_clip config"),
    (raw_open_clip(b"[" * 10**5), "nested too deep"),
    (raw_open_clip(b"{}"), "is not an open_clip config (KeyError: 'model_cfg'"),
    (raw_open_clip(b'{"model_cfg": 5}'), "is not an open_clip config (TypeError"),
    (raw_open_clip(b'{"model_cfg": {"vision_cfg": {}}}'), "KeyError: 'text_cfg'"),
    (
        raw_open_clip(b'{"model_cfg":{"vision_cfg":[],"text_cfg":{}}}'),
        "is not an open_clip config",
    ),
    (open_clip({"timm_model_name": "vit"}), "vision_cfg.timm_model_name is vit"),
    (open_clip({"mlp_ratio": 3}), "vision_cfg.mlp_ratio is 3, expected 4.0"),
    (open_clip({"head_width": 80}), "vision_cfg.head_width is 80, expected 64"),
    (open_clip({"act_kwargs": [["x"] * 99]}), "vision_cfg.act_kwargs is [['x', "),
    (open_clip({"pool_type": "avg"}), "vision_cfg.pool_type is avg, expected"),
    (
        raw_open_clip(
            b'{"model_cfg":{"vision_cfg":{"pool_type":%s},"text_cfg":{}}}' % DEEP
        ),
        "vision_cfg.pool_type is [[[[",
    ),
    (open_clip(text={"heads": 4}), "text_cfg.heads is 4, expected 8"),
    (open_clip(text={"heads": [0] * 10**5}), "wanted a size of 1 to 8192, got [0, 0"),
    (open_clip(text={"heads": "a" * 10**6}), "wanted a size of 1 to 8192, got aaaa"),
    (open_clip(text={"width": None}), "wanted a size of 1 to 8192, got None"),
    (open_clip({"image_size": 0}), "wanted a size of 1 to 8192, got 0"),
    (open_clip({"image_size": [1, 2, 3]}), "too many values"),
    (open_clip({"patch_size": 1e9}), "wanted a size of 1 to 8192, got 1000000000.0"),
    (open_clip(embed_dim=-1), "wanted a size of 1 to 8192, got -1"),
    (open_clip({"width": 64}), "does not fit this model"),
    (index(None), "has no weight_map: it is no index of weights"),
    (index([]), "has no weight_map"),
    (index({"w": 5}), "wanted shards in its own folder, got '5'"),
    (index({"w": ""}), "wanted shards in its own folder, got ''"),
    (index({"w": "../m.safetensors"}), "wanted shards in its own folder"),
    (index({"w": "/etc/passwd"}), "wanted shards in its own folder"),
    (index({"w": "a\\b"}), "wanted shards in its own folder"),
    (index({"w": "."}), "wanted shards in its own folder"),
    (index({"w": "a\0b"}), "no weight file at"),
    (index({"w": "a" * 5000}), "no weight file at"),
    (index({"w": [["x"]]}), "wanted shards in its own folder, got \"[['x']]\""),
    (index({"w": "none\x1b[2J"}), r"no weight file at"),
    (index({f"w{i}": f"{i}" for i in range(17)}), "17 shards; the limit is 16"),
    (
        index({f"w{i}": "m" for i in range(20_001)}),
        "20001 tensors with names of",
    ),
    (
        index({"v": "m.safetensors"}, **{"m.safetensors": tensors("w")}),
        "does not fit its shards:\n  v is not in m.safetensors",
    ),
    ({INDEX: b"{"}, "is not an index of weights"),
    ({INDEX: b"[" * 10**5}, "nested too deep"),
    ({INDEX: []}, "is not an index of weights, but a list"),
]


def read(folder: Path, files: dict[str, Any]) -> object:
    for name, content in files.items():
        raw = isinstance(content, bytes)
        (folder / name).write_bytes(content if raw else json.dumps(content).encode())
    return weights.load_params(folder, image_size=(64, 32), stride=8)


# What is given instead of a file, below an empty folder.
PATHS = [
    ("", "no weights in the folder"),
    ("none", "no weight file at"),
    ("a" * 300, "no weight file at"),
    ("a/" * 3000, "no weight file at"),
    ("a\0b", r"a\x00b"),
    ("\udcff", r"\udcff"),
    ("red\x1b[31m", r"red\x1b[31m"),
]


def look(folder: Path, path: str) -> object:
    return weights.load_params(f"{folder}/{path}")


NAMES = [
    ("ViT-B/16", "hf://ORG/NAME"),
    ("gs://b/m.pt", "download it, and name the local file"),
    ("~nobodyhere/m.pt", "no weight file at ~nobodyhere/m.pt"),
    ("/dev/zero", "no weight file at /dev/zero"),
    ("/proc/self/mem", "/proc/self/mem"),
]

READERS = [
    Reader("weight folders", read, weights.WeightsError, ROWS),
    Reader("weight paths", look, weights.WeightsError, PATHS),
    Reader(
        "weight names",
        lambda _, name: weights.load_params(name),
        weights.WeightsError,
        NAMES,
    ),
]
