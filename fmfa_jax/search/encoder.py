# SPDX-License-Identifier: Apache-2.0
"""The model and tokenizer of an index: opened, and recognised again."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, UInt8

from data_pipeline.tokenizer import WordTokenizer
from fmfa_jax.evaluation.blocks import unit_rows
from fmfa_jax.losses.alignment import RULES
from fmfa_jax.models import Retriever
from fmfa_jax.search import store
from fmfa_jax.search.store import IndexRecord, SearchError
from fmfa_jax.weights import (
    fetch,
    fitting_tokenizer,
    is_hub,
    load_model,
    located,
    open_with_tokenizer,
    run_config,
)
from fmfa_jax.weights.source import open_source


@dataclass(frozen=True)
class IndexModel:
    """Pictures and sentences -> unit rows of one space.

    Attributes:
        model: Both towers.
        tokenizer: The model's tokenizer.
        tokenizer_name: "clip" or a folder.
        record: What an index notes about the model.
        efa_rule: Rule by which the model was trained to compare words and patches.
        rows: Where the rows of a batch of pictures go; None: all to one device.
    """

    model: Retriever
    tokenizer: WordTokenizer
    tokenizer_name: str
    record: store.ModelRecord
    efa_rule: str = "official"
    rows: NamedSharding | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the model's pictures."""
        return self.model.config.image_size

    def pictures(
        self, images: UInt8[np.ndarray, "b h w 3"]
    ) -> Float32[np.ndarray, "b d"]:
        """Embed pictures of the model's size; see `embeddings`."""
        placed = jax.device_put(images, self.rows) if self.rows else images
        return embeddings(self.model.encode_image(placed))

    def sentences(self, sentences: Sequence[str]) -> Float32[np.ndarray, "b d"]:
        """Embed sentences, truncated as in training; see `embeddings`."""
        tokens = self.tokenizer.encode(sentences, self.model.config.context_length)
        return embeddings(self.model.encode_text(tokens))


def spread(model: IndexModel, devices: Sequence[jax.Device]) -> IndexModel:
    """Return the model on several devices, each of which embeds a part of a batch."""
    mesh = Mesh(np.array(devices), ("data",))
    params = jax.device_put(model.model.params, NamedSharding(mesh, P()))
    copies = Retriever(model.model.config, params, model.model.report)
    return replace(model, model=copies, rows=NamedSharding(mesh, P("data")))


def embeddings(
    features: Float[np.ndarray | Array, "n d"],
) -> Float32[np.ndarray, "n d"]:
    """Return features as unit rows; raise SearchError if the model has diverged."""
    try:
        return unit_rows(features, name="embedding")
    except ValueError as error:
        raise SearchError(str(error)) from error


def open_model(
    path: str | Path,
    *,
    tokenizer: str | None = None,
    image_size: tuple[int, int] | None = None,
    stride: int | None = None,
    source_grid: tuple[int, int] | None = None,
    activation: str = "auto",
) -> IndexModel:
    """Open a run folder or weight file with the tokenizer that belongs to it.

    Arguments and WeightsError are those of `weights.open_with_tokenizer`.
    """
    # The index notes the commit: what the name leads to today may be replaced.
    found = fetch(str(path)) if is_hub(path) else None
    place, noted = (found.place, found.name) if found else (path, Path(path).resolve())
    opened = open_with_tokenizer(
        place,
        tokenizer=tokenizer,
        image_size=image_size,
        stride=stride,
        source_grid=source_grid,
        activation=activation,
    )
    model = opened.model
    record = store.ModelRecord(
        path=str(noted),
        sha256=model.report.sha256,
        config=json.loads(json.dumps(dataclasses.asdict(model.config))),
        source_grid=source_grid,
    )
    return IndexModel(
        model, opened.tokenizer, opened.tokenizer_name, record, _efa_rule(place)
    )


def reopen_model(
    folder: Path, record: IndexRecord, path: str | None = None
) -> IndexModel:
    """Open the model that the index in `folder` was made with.

    `path` says where it is now, if it has moved.

    Raises:
        SearchError: It is another model, or no longer there.
        WeightsError: Its file or the index's tokenizer is damaged.
    """
    if record.preprocessing != store.PREPROCESSING:
        raise SearchError(
            f"this index was made with the preprocessing {record.preprocessing!r}, "
            f"this code has {store.PREPROCESSING!r}; index the gallery again"
        )
    place = Path(located(path or record.model.path))
    if not place.exists():
        raise SearchError(
            f"the model of this index is no longer at {place}; say where it lies "
            f"with --model (its SHA-256 is {record.model.sha256})"
        )
    digest = open_source(place).sha256
    if digest != record.model.sha256:
        raise SearchError(
            f"{place} is not the model that this index was made with: the index has "
            f"SHA-256 {record.model.sha256}, this file {digest}. Embeddings of two "
            "models cannot be compared: name the right one with --model, or index the "
            "gallery with this one into another folder"
        )
    config = record.model.config
    model = load_model(
        place,
        image_size=tuple(config["image_size"]),
        stride=config["stride"],
        context_length=config["context_length"],
        source_grid=record.model.source_grid,
        # Indexes from before there was a choice do not state it.
        activation=config.get("activation", "quick_gelu"),
    )
    name = store.tokenizer_name(folder, record)
    tokenizer = fitting_tokenizer(name, model.config.vocab_size)
    # CLIP's own is no file of the index; `search verify` looks at it, too.
    stated = record.tokenizer_sha256 if name != "clip" else ""
    if stated and stated != (found := tokenizer.fingerprint()):
        raise SearchError(
            f"the tokenizer {name!r} is damaged or another one: it has SHA-256 "
            f"{found}, the index was made with {stated}; index the gallery again into "
            "another folder"
        )
    return IndexModel(model, tokenizer, name, record.model, _efa_rule(place))


def _efa_rule(path: str | Path) -> str:
    """Return the rule of a run; "official" where it is unknown."""
    rule = run_config(path).get("loss.efa_rule")
    return rule if rule in RULES else "official"
