# SPDX-License-Identifier: Apache-2.0
"""The model and tokenizer of an index: opened, and recognised again."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, UInt8

from data_pipeline.tokenizer import WordTokenizer, open_tokenizer
from fmfa_jax.losses.alignment import RULES
from fmfa_jax.models import Retriever
from fmfa_jax.search import store
from fmfa_jax.search.store import SearchError
from fmfa_jax.weights import load_model
from fmfa_jax.weights.source import open_source

CLIP_VOCABULARY = 49408


@dataclass(frozen=True)
class Encoder:
    """Pictures and sentences -> unit rows of one space.

    Attributes:
        model: both towers.
        tokenizer: the model's.
        tokenizer_name: "clip" or a folder.
        record: what an index notes of the model.
        efa_rule: by which the model was trained to compare words and patches.
    """

    model: Retriever
    tokenizer: WordTokenizer
    tokenizer_name: str
    record: store.Model
    efa_rule: str = "official"

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the model's pictures."""
        return self.model.config.image_size

    def pictures(
        self, images: UInt8[np.ndarray, "b h w 3"]
    ) -> Float32[np.ndarray, "b d"]:
        """Embed pictures of the model's size.

        Raises:
            SearchError: the model gives values that are not finite.
        """
        return unit_rows(np.asarray(self.model.encode_image(images)))

    def sentences(self, sentences: Sequence[str]) -> Float32[np.ndarray, "b d"]:
        """Embed sentences; what is too long is cut as in training.

        Raises:
            SearchError: the model gives values that are not finite.
        """
        tokens = self.tokenizer.encode(sentences, self.model.config.context_length)
        return unit_rows(np.asarray(self.model.encode_text(tokens)))


def unit_rows(rows: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Return the rows with length 1; a row of zeros stays.

    Raises:
        SearchError: a row holds NaN or infinity.
    """
    rows = rows.astype(np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = int(np.count_nonzero(~np.isfinite(length)))
    if bad:
        raise SearchError(
            f"the model gives NaN or infinity for {bad} of {len(rows)} inputs: it has "
            "diverged, or its weights do not fit; take an earlier checkpoint"
        )
    return rows / np.maximum(length, 1e-12)


def open_encoder(
    path: str | Path,
    *,
    tokenizer: str | None = None,
    image_size: tuple[int, int] | None = None,
    stride: int | None = None,
    source_grid: tuple[int, int] | None = None,
) -> Encoder:
    """Open a run folder or weight file, and the tokenizer that belongs to it.

    Args:
        path: see `weights.load_model`.
        tokenizer: "clip" or a folder with vocab.json and merges.txt; None: what the
            run's config.json names, or "clip" where the vocabulary has CLIP's size.
        image_size: where the file does not state it.
        stride: where the file does not state it.
        source_grid: see `weights.load_model`.

    Raises:
        WeightsError: the weights cannot be used.
        SearchError: the tokenizer is unknown, or another model's.
    """
    model = load_model(
        path, image_size=image_size, stride=stride, source_grid=source_grid
    )
    vocabulary = model.config.vocab_size
    name = tokenizer or _of_run(path, "data.tokenizer") or _clip(vocabulary)
    record = store.Model(
        path=str(Path(path).resolve()),
        sha256=model.report.sha256,
        config=json.loads(json.dumps(dataclasses.asdict(model.config))),
        source_grid=source_grid,
    )
    opened = _tokenizer(name, vocabulary)
    return Encoder(model, opened, name, record, _efa_rule(path))


def reopen_encoder(
    folder: Path, manifest: store.Manifest, path: str | None = None
) -> Encoder:
    """Open the model that an index was made with.

    Args:
        folder: of the index.
        manifest: of the index.
        path: where the model lies now; None: where it lay.

    Raises:
        SearchError: it is another model, or not there any more.
        WeightsError: its file is damaged.
    """
    check_preprocessing(manifest)
    place = Path(path or manifest.model.path)
    if not place.exists():
        raise SearchError(
            f"the model of this index is not at {place} any more; say where it lies "
            f"with --model (its SHA-256 is {manifest.model.sha256})"
        )
    digest = open_source(place).sha256
    if digest != manifest.model.sha256:
        raise SearchError(
            f"{place} is not the model that this index was made with: the index has "
            f"SHA-256 {manifest.model.sha256}, this file {digest}. Embeddings of two "
            "models cannot be compared: name the right one with --model, or index the "
            "gallery with this one into another folder"
        )
    config = manifest.model.config
    model = load_model(
        place,
        image_size=tuple(config["image_size"]),
        stride=config["stride"],
        context_length=config["context_length"],
        source_grid=manifest.model.source_grid,
    )
    name = manifest.tokenizer
    name = name if name == "clip" else str(folder / name)
    tokenizer = _tokenizer(name, model.config.vocab_size)
    return Encoder(model, tokenizer, name, manifest.model, _efa_rule(place))


def check_preprocessing(manifest: store.Manifest) -> None:
    """Refuse an index whose pictures were made ready in another way.

    Raises:
        SearchError: they were.
    """
    if manifest.preprocessing != store.PREPROCESSING:
        raise SearchError(
            f"this index was made with the preprocessing {manifest.preprocessing!r}, "
            f"this code has {store.PREPROCESSING!r}; index the gallery again"
        )


def _tokenizer(name: str, vocabulary: int) -> WordTokenizer:
    try:
        tokenizer = open_tokenizer(name)
    except (OSError, ValueError) as error:
        raise SearchError(f"{error}; name the model's with --tokenizer") from error
    if tokenizer.vocab_size != vocabulary:
        raise SearchError(
            f"the tokenizer {name!r} has {tokenizer.vocab_size} entries, the model "
            f"wants {vocabulary}; name the model's with --tokenizer"
        )
    return tokenizer


def _of_run(path: str | Path, key: str) -> str | None:
    """Return what a run's config.json names, or None outside of run folders."""
    path = Path(path)
    config = (path if path.is_dir() else path.parent) / "config.json"
    try:
        name = json.loads(config.read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError):
        return None
    return name if isinstance(name, str) and name else None


def _efa_rule(path: str | Path) -> str:
    """Return the rule of a run; "official" where it is unknown."""
    rule = _of_run(path, "loss.efa_rule")
    return rule if rule in RULES else "official"


def _clip(vocabulary: int) -> str:
    if vocabulary == CLIP_VOCABULARY:
        return "clip"
    raise SearchError(
        f"the model has a vocabulary of {vocabulary}, CLIP's has {CLIP_VOCABULARY}: "
        "name the folder of its tokenizer with --tokenizer"
    )
