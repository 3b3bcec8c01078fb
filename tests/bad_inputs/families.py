# SPDX-License-Identifier: Apache-2.0
"""Kinds of files for the fuzzer: valid small ones, and what reads them.

A family makes files by name from a `random.Random` and reads them in a folder. What it
reads may be wrong only in the ways that its readers declare.
"""

import contextlib
import functools
import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import jax
import numpy as np

from configs import cuhk
from data_pipeline.datasets import AnnotationError, DatasetMissing, open_dataset
from data_pipeline.disk_cache import DiskCache
from data_pipeline.images import ImageError, inspect, load
from data_pipeline.pictures import Pictures
from data_pipeline.records import Picture, Split
from data_pipeline.synthetic import recorded_options
from data_pipeline.tokenizer import open_tokenizer
from fmfa_jax import models, weights
from fmfa_jax.evaluation.tables import read_table
from fmfa_jax.figures import curves
from fmfa_jax.run import manifests
from fmfa_jax.run.writers import jsonl
from fmfa_jax.search import shards, store
from fmfa_jax.search.store import SearchError
from fmfa_jax.training import settings
from fmfa_jax.weights.native import write_safetensors
from fmfa_jax.weights.opened import run_config
from fmfa_jax.weights.tokenizer_files import tokenizer_of
from tests.bad_inputs import mutations, prepared, records, tokenizers
from tests.bad_inputs.annotations import entry, line
from tests.bad_inputs.mutations import mutated, mutated_json
from tests.bad_inputs.pictures import encoded
from tests.bad_inputs.programs import archive, state_dict
from tests.tiny_model import tiny_model

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Family:
    """A kind of files.

    Attributes:
        name: What they are.
        make: Bad files by name.
        read: Reads them in a folder.
        errors: What reading them declares to raise.
        slow: Whether it takes seconds to begin with.
    """

    name: str
    make: Callable[[Random], Files]
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...]
    slow: bool = False


# Weights.


@functools.cache
def weight_files(folder: Path) -> dict[str, bytes]:
    """One small model in every format, by name."""
    config = tiny_model(classes=3, irr_layers=1)
    params = jax.tree.map(
        lambda leaf: np.full(leaf.shape, 0.5, np.float32), models.param_shapes(config)
    )
    weights.save_native(folder / "native", params, config)
    weights.export_official(folder / "official", params)
    weights.export_hugging_face(folder / "hf", params, config)
    names = ("native", "official", "hf/model.safetensors", "hf/config.json")
    files = {name: (folder / name).read_bytes() for name in names}
    official = weights.read_archive(folder / "official").tensors
    tensors = {name: tensor.read() for name, tensor in official.items()}
    towers = {
        name.removeprefix("base_model."): tensor
        for name, tensor in tensors.items()
        if name.startswith("base_model.")
    }
    write_safetensors(folder / "open_clip", towers, {})
    files["open_clip"] = (folder / "open_clip").read_bytes()
    files["archive"] = archive(*state_dict(tensors))
    program, storages = state_dict({f"module.{n}": t for n, t in tensors.items()})
    inside = program[2:-1]
    wrapped = b"\x80\x02}X\x05\x00\x00\x00model" + inside + b"s."
    files["wrapped"] = archive(wrapped, storages)
    return files


def header_regions(whole: bytes) -> mutations.Regions:
    (length,) = struct.unpack_from("<Q", whole)
    return (0, 8), *[(8, 8 + length)] * 4, (0, len(whole))


class WeightFamilies:
    """Families of weights; their valid files are made in a folder."""

    def __init__(self, folder: Path) -> None:
        self.files = weight_files(folder)

    def zip(self, draw: Random) -> Files:
        whole = self.files[draw.choice(("archive", "wrapped"))]
        return {"m.pt": mutated(draw, whole, mutations.zip_regions(whole))}

    def safetensors(self, draw: Random) -> Files:
        whole = self.files[draw.choice(("native", "official"))]
        if draw.random() < 0.5:
            return {"m.pt": mutated(draw, whole, header_regions(whole))}
        (length,) = struct.unpack_from("<Q", whole)
        header = mutated_json(draw, json.loads(whole[8 : 8 + length]))
        data = whole[8 + length :]
        return {"m.pt": struct.pack("<Q", len(header)) + header + data}

    def native_config(self, draw: Random) -> Files:
        """Our own file, whose config is JSON within its header's JSON."""
        whole = self.files["native"]
        (length,) = struct.unpack_from("<Q", whole)
        header = json.loads(whole[8 : 8 + length])
        told = header["__metadata__"]
        told["config"] = mutated_json(draw, json.loads(told["config"])).decode(
            errors="replace"
        )
        text = json.dumps(header).encode()
        return {"m.pt": struct.pack("<Q", len(text)) + text + whole[8 + length :]}

    def folder(self, draw: Random) -> Files:
        config = json.loads(self.files["hf/config.json"])
        made = {"model.safetensors": self.files["hf/model.safetensors"]}
        if draw.random() < 0.3:
            made["preprocessor_config.json"] = mutated_json(draw, {"image_mean": [0.5]})
        return made | {"config.json": mutated_json(draw, config)}

    def sharded(self, draw: Random) -> Files:
        whole = self.files["hf/model.safetensors"]
        (length,) = struct.unpack_from("<Q", whole)
        names = [n for n in json.loads(whole[8 : 8 + length]) if n != "__metadata__"]
        index = {"weight_map": dict.fromkeys(names, "one.safetensors")}
        return {
            "one.safetensors": whole,
            "config.json": self.files["hf/config.json"],
            "model.safetensors.index.json": mutated_json(draw, index),
        }

    def open_clip(self, draw: Random) -> Files:
        sizes = {"image_size": [32, 16], "patch_size": 8, "width": 64, "layers": 1}
        text = {"context_length": 12, "vocab_size": 80, "width": 64, "heads": 1}
        model = {"embed_dim": 64, "vision_cfg": sizes, "text_cfg": text}
        whole = {"model_cfg": model, "preprocess_cfg": {"interpolation": "bicubic"}}
        return {
            "open_clip_model.safetensors": self.files["open_clip"],
            "open_clip_config.json": mutated_json(draw, whole),
        }


def read_weights(folder: Path) -> object:
    path = folder / "m.pt"
    loaded = weights.load_params(path if path.exists() else folder, stride=8)
    return [float(np.sum(leaf)) for leaf in jax.tree.leaves(loaded.params)]


def pickles(draw: Random) -> Files:
    return {"m.pt": archive(mutations.program(draw))}


# Data.


def layouts(draw: Random) -> Files:
    splits = ("train", "train", "val", "test", "test")
    whole = [
        entry(split=split, id=i, file_path=f"{i}.jpg")[0]
        for i, split in enumerate(splits)
    ]
    return {"CUHK-PEDES/imgs/x": b"", "CUHK-PEDES/reid_raw.json": _json(draw, whole)}


def _json(draw: Random, value: Any) -> bytes:
    return mutated_json(draw, value)


def read_dataset(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        data = open_dataset(name, str(folder))
        labels = [split.pair_labels.sum() for split in data.splits]
        return data.fingerprint, labels, [split.contents for split in data.splits]

    return read


def captions(draw: Random) -> Files:
    rows = [json.loads(line(file=f"{i}.jpg", person=f"p{i // 2}")) for i in range(4)]
    lines = [json.dumps(rows[0]).encode(), mutated_json(draw, rows[1])]
    lines += [mutated_json(draw, row) for row in rows[2:] if draw.random() < 0.5]
    return {"captions.jsonl": b"\n".join(lines)}


ALPHABET = (
    *("a", "B", " ", "&", ";", "&amp;", "&lt", "<|endoftext|>", "<|mask|>", "\n", "\0"),
    *(
        "é",
        "e\u0301",
        "\u0316\u0301",
        "ﬁ",
        "ß",
        "İ",
        "\u200d",
        "👨‍👩‍👧",
        "\u202e",
        "٣",
        "中",
    ),
    *("Ã©", "â€™", "\ufeff", "\ufffd", "'s", "don't", "#", "1", "\u2028", "\xa0"),
)


def sentences(draw: Random) -> Files:
    """A caption of up to some 10,000 letters."""
    pieces = draw.choices(ALPHABET, k=draw.choice((1, 3, 10, 100)))
    return {"caption": ("".join(pieces) * draw.choice((1, 1, 1, 30))).encode()}


@functools.cache
def clip() -> Any:
    return open_tokenizer("clip")


def encode(folder: Path) -> object:
    caption = (folder / "caption").read_text(encoding="utf-8")
    row = clip().encode([caption], 77)[0]
    assert row[0] == clip().start_id and row.max() == clip().end_id
    return clip().words(row)


def tokenizer_folders(draw: Random) -> Files:
    files = tokenizers.tables()
    if draw.random() < 0.3:
        return {"tokenizer.json": _json(draw, tokenizers.joint()["tokenizer.json"])}
    if draw.random() < 0.5:
        vocabulary = json.dumps(files["vocab.json"]).encode()
        return {
            "vocab.json": vocabulary,
            "merges.txt": mutated(draw, files["merges.txt"]),
        }
    return {
        "vocab.json": _json(draw, files["vocab.json"]),
        "merges.txt": files["merges.txt"],
    }


def read_tokenizer(folder: Path) -> object:
    tokenizer = open_tokenizer(str(folder))
    row = tokenizer.encode(["a man in abc"], 20)[0]
    return tokenizer.fingerprint, tokenizer.words(row)


@functools.cache
def picture_files() -> dict[str, bytes]:
    forms = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")
    return {form: encoded(form) for form in forms}


def pictures(draw: Random) -> Files:
    whole = draw.choice(list(picture_files().values()))
    start = (0, min(len(whole), 200))
    return {"1.jpg": mutated(draw, whole, (start, (0, len(whole))))}


def read_picture(folder: Path) -> object:
    path = folder / "1.jpg"
    pixels = load(path, (16, 8))
    assert pixels.shape == (16, 8, 3)
    return inspect(path.read_bytes())


SIDES = (8, 4)


def cached(draw: Random) -> Files:
    """Two pictures, and bytes to be written over the cache of them."""
    wrong = bytes(draw.randrange(256) for _ in range(draw.choice((1, 4, 50))))
    place = struct.pack("<H", draw.randrange(8 + 2 * SIDES[0] * SIDES[1] * 3))
    made = {name: picture_files()["PNG"] for name in ("0.png", "1.png")}
    return made | {"wrong": place + wrong}


def read_cached(folder: Path) -> object:
    """Whatever was written over a cache, it gives the pixels of the pictures."""
    split = Split(
        "train", tuple(Picture(n, str(folder / n), 1) for n in ("0.png", "1.png")), ()
    )
    first = DiskCache(folder / "cache", split, SIDES)
    good = [Pictures(split, SIDES, first).read(i).copy() for i in (0, 1)]
    (place,) = struct.unpack_from("<H", (folder / "wrong").read_bytes())
    with open(first.where, "r+b") as file:
        file.seek(place)
        file.write((folder / "wrong").read_bytes()[2:])
    again = Pictures(split, SIDES, DiskCache(folder / "cache", split, SIDES))
    assert all(np.array_equal(again.read(i), good[i]) for i in (0, 1))
    return good


def prepared_files(draw: Random) -> Files:
    version = next(prepared.good().glob("folder/*"))
    files = {p.name: p.read_bytes() for p in version.iterdir() if p.is_file()}
    name = draw.choice(sorted(files))
    if name.endswith(".json") and draw.random() < 0.7:
        files[name] = mutated_json(draw, json.loads(files[name]))
    else:
        files[name] = mutated(draw, files[name])
    return {f"folder/{version.name}/{name}": data for name, data in files.items()}


def read_prepared(folder: Path) -> object:
    data = open_dataset("tfds:folder", str(folder))
    return [split.read(i) for split in data.splits for i in range(len(split.images))]


# What runs and indexes keep.


@functools.cache
def index_files(folder: Path) -> dict[str, bytes]:
    records.write_index(folder / "index")
    names = ("index.json", "shards/1.safetensors")
    return {name: (folder / "index" / name).read_bytes() for name in names}


class IndexFamilies:
    """Indexes of a gallery of two; the valid one is made in a folder."""

    def __init__(self, folder: Path) -> None:
        self.files = index_files(folder)

    def records(self, draw: Random) -> Files:
        whole = json.loads(self.files["index.json"])
        del whole["sha256"]  # as version 2 had none: else it would be all that is read
        record = mutated_json(draw, whole | {"version": 2})
        return self.files | {"index.json": record}

    def shards(self, draw: Random) -> Files:
        name = "shards/1.safetensors"
        whole = self.files[name]
        return self.files | {name: mutated(draw, whole, header_regions(whole))}


def read_index(folder: Path) -> object:
    opened = shards.open_shards(folder, store.read_record(folder))
    return [each.stamps() for each in opened]


def sealed(draw: Random) -> Files:
    """A step whose manifest was damaged, or changed and sealed again."""
    files = {"a": {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}}
    body = records.BODY | {"files": files, "arrays": {"w": "float32[2]"}}
    if draw.random() < 0.5:
        body = mutations.mutated_value(draw, body)
        with contextlib.suppress(ValueError):
            text = {"sha256": manifests._digest_of(body), "body": body}
            return {"3/a": b"x", "3/manifest.json": json.dumps(text).encode()}
    text = {"sha256": manifests._digest_of(body), "body": body}
    return {"3/a": b"x", "3/manifest.json": mutated_json(draw, text)}


def metrics(draw: Random) -> Files:
    rows = [{"step": i, "epoch": i, "total": 1.5, "lr": 1e-5} for i in range(1, 5)]
    lines = [mutated_json(draw, row) for row in rows]
    return {"metrics.jsonl": b"\n".join(lines) + draw.choice((b"", b"\n"))}


def read_metrics(folder: Path) -> object:
    """A run goes on after whatever it finds, and then its file can be read."""
    with contextlib.suppress(ValueError):
        curves.read_metrics(folder / "metrics.jsonl")
    jsonl.recorded(folder, "total", step=2)
    log = jsonl.JsonLines(folder, start_step=2, say=lambda _: None)
    log.scalars(3, 1, {"total": 1.0})
    log.close()
    found = curves.read_metrics(folder / "metrics.jsonl")
    assert found[-1] == {"step": 3, "epoch": 1, "total": 1}
    assert all(row["step"] <= 3 for row in found)
    return found


def configs(draw: Random) -> Files:
    """A run's config.json, a table of results and the options of drawn people."""
    config = settings.flat(cuhk.get_config("official").to_dict())
    people = {"edition": 2, "identities": 4, "images_per_identity": 2, "seed": 0}
    people |= {"style": "studio", "val_identities": 0, "test_identities": 0}
    return {
        "config.json": mutated_json(draw, config),
        "table.json": mutated_json(draw, records.GOOD),
        "population.json": mutated_json(draw, people | {"image_size": [192, 96]}),
    }


def read_configs(folder: Path) -> object:
    run_config(folder), tokenizer_of(folder, 80)
    with contextlib.suppress(ValueError):
        curves.read_losses(folder / "config.json")
    with contextlib.suppress(ValueError):
        recorded_options(folder)
    return read_table(folder / "table.json").markdown


def options(draw: Random) -> Files:
    """A config of which a few values are others."""
    preset = draw.choice(("official", "weak", "rde"))
    whole = cuhk.get_config(preset).to_dict()
    for _ in range(draw.choice((1, 1, 2))):
        section = draw.choice([key for key in whole if isinstance(whole[key], dict)])
        key = draw.choice(sorted(whole[section].keys() - {"options"}))
        whole[section][key] = mutations.mutated_value(draw, whole[section][key])
    return {"config": json.dumps([preset, whole]).encode()}


def read_options(folder: Path) -> object:
    preset, whole = json.loads((folder / "config").read_text())
    config = cuhk.get_config(preset).copy_and_resolve_references()
    # What Python cannot put into a config is not the project's to refuse.
    try:
        with config.unlocked():
            config.update(whole)
    except (OverflowError, TypeError, ValueError):
        return None
    return asdict(settings.read(config).train)


def families(folder: Path) -> list[Family]:
    """Return all families; their valid files are made in a folder."""
    made, index = WeightFamilies(folder), IndexFamilies(folder)
    refused, unread = (weights.WeightsError,), (AnnotationError, DatasetMissing)
    return [
        Family("zip archives", made.zip, read_weights, refused),
        Family("pickles", pickles, read_weights, refused),
        Family("safetensors", made.safetensors, read_weights, refused),
        Family("native configs", made.native_config, read_weights, refused),
        Family("Hugging Face folders", made.folder, read_weights, refused),
        Family("sharded folders", made.sharded, read_weights, refused),
        Family("open_clip folders", made.open_clip, read_weights, refused),
        Family("annotations", layouts, read_dataset("cuhk_pedes"), unread),
        Family("captions.jsonl", captions, read_dataset("folder"), unread),
        Family("captions", sentences, encode, ()),
        Family("tokenizers", tokenizer_folders, read_tokenizer, (OSError, ValueError)),
        Family("pictures", pictures, read_picture, (ImageError,)),
        Family("cached pictures", cached, read_cached, ()),
        Family(
            "TFDS folders",
            prepared_files,
            read_prepared,
            (AnnotationError, DatasetMissing, OSError),
            slow=True,
        ),
        Family("indexes", index.records, read_index, (SearchError,)),
        Family("shards", index.shards, read_index, (SearchError,)),
        Family(
            "manifests",
            sealed,
            lambda folder: manifests.verify(folder / "3"),
            (manifests.CorruptCheckpointError,),
        ),
        Family("metrics.jsonl", metrics, read_metrics, ()),
        Family("configs and tables", configs, read_configs, (ValueError,)),
        Family("config values", options, read_options, (ValueError,)),
    ]
