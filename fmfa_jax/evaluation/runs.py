# SPDX-License-Identifier: Apache-2.0
"""A run folder or weight file, opened to be measured or drawn."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from data_pipeline import hints
from data_pipeline.command import found
from data_pipeline.copies import near
from data_pipeline.datasets import READERS, open_dataset
from data_pipeline.loader import gallery_batches, query_batches
from data_pipeline.records import PersonDataset, Split
from data_pipeline.synthetic import recorded_options
from data_pipeline.tokenizer import Tokenizer, WordTokenizer
from fmfa_jax import weights
from fmfa_jax.evaluation.encode import SplitFeatures, encode_rows
from fmfa_jax.models import Retriever

FILES = {"best": "model_best.safetensors", "last": "model_last.safetensors"}
"""What --weights names, in a run folder."""

_BATCH = 64  # where no config says


@dataclass(frozen=True)
class Run:
    """A run folder or weight file, whose parts are opened when they are needed.

    Attributes:
        path: The folder or file.
        which: Which weights of a run folder: a key of `FILES`; by default the best,
            or the last if there are no best.
        root: New root of the run's data set, if it was moved.
        tokenizer_name: "clip" or a folder; None: the run's.
        stated: Further arguments of `weights.load_model`.
    """

    path: Path
    which: str = ""
    root: str | None = None
    tokenizer_name: str | None = None
    stated: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The flat config that training wrote: dotted key -> value.

        Raises:
            FileNotFoundError: There is none.
        """
        if config := weights.run_config(self.path):
            return config
        raise FileNotFoundError(
            f"no config.json in {self.path}: expected a run folder, as given to "
            "main.py as --workdir"
        )

    @property
    def folder(self) -> Path:
        """The run's folder, or that of the weight file."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def trained_on(self) -> str:
        """Name of the data set that it learned from; "" if nothing states it."""
        return str(weights.run_config(self.path).get("data.name", ""))

    @cached_property
    def file(self) -> Path:
        """The weights, or a folder that `load_params` knows to choose from.

        Raises:
            FileNotFoundError: The run has no such weights.
        """
        if not self.which or not weights.run_config(self.path):
            return self.path
        if not self.path.is_dir():
            return self.path
        file = self.path / FILES[self.which]
        if not file.is_file():
            there = [name for name in FILES.values() if (self.path / name).is_file()]
            raise FileNotFoundError(
                f"{self.path}: wanted its {self.which} weights, {file.name}, got "
                f"{' and '.join(there) or 'none'}; --weights chooses between "
                f"{' and '.join(FILES)}"
            )
        return file

    @cached_property
    def about(self) -> dict[str, str]:
        """What a weight file of a run says of itself, such as its step."""
        if not self.file.is_file() or self.file.name not in FILES.values():
            return {}
        return dict(weights.read_archive(self.file).metadata)

    @cached_property
    def _opened(self) -> weights.OpenedModel:
        return weights.open_with_tokenizer(
            self.file, tokenizer=self.tokenizer_name, **self.stated
        )

    @property
    def model(self) -> Retriever:
        """Both towers."""
        return self._opened.model

    @property
    def tokenizer(self) -> WordTokenizer:
        """Tokenizer for the captions."""
        return self._opened.tokenizer

    @cached_property
    def data(self) -> PersonDataset:
        """The data set that the run learned from, as its config.json says.

        Raises:
            ValueError: It does not say; or see `open_dataset`.
        """
        config, prefix = self.config, "data.options."
        told = {key: config.get(key) for key in ("data.name", "data.root")}
        if missing := [key for key, value in told.items() if not value]:
            raise ValueError(
                f"{self.folder / 'config.json'}: wanted the run's data set, but "
                f"{' and '.join(missing)} is missing"
            )
        people = config.get("data.people", 1.0)
        if not isinstance(people, int | float) or not all(
            isinstance(value, str) for value in told.values()
        ):
            raise ValueError(
                f"{self.folder / 'config.json'}: wanted data.name and data.root as "
                "texts and data.people as a number"
            )
        # JSON has lists where configs have tuples.
        options = {
            key.removeprefix(prefix): tuple(value) if type(value) is list else value
            for key, value in config.items()
            if key.startswith(prefix)
        }
        root = self.root or told["data.root"]
        return open_dataset(told["data.name"], root, people=people, **options)

    def features(self, split: Split) -> SplitFeatures:
        """Encode a split."""
        return SplitFeatures(*self.images(split), *self.texts(split))

    def images(
        self, split: Split
    ) -> tuple[Float32[np.ndarray, "g d"], Int[np.ndarray, "g"]]:
        """Encode the pictures of a split; also return their persons."""
        size = self.model.config.image_size
        return encode_rows(
            self.model.encode_image,
            gallery_batches(split, image_size=size, batch_size=self._batch),
            what="image",
            index="image_id",
        )

    def texts(
        self, split: Split, tokenizer: Tokenizer | None = None
    ) -> tuple[Float32[np.ndarray, "q d"], Int[np.ndarray, "q"]]:
        """Encode the captions of a split; also return their persons.

        Args:
            split: Its captions.
            tokenizer: What reads them; None: the model's own.
        """
        batches = query_batches(
            split,
            tokenizer=tokenizer or self.tokenizer,
            context_length=self.model.config.context_length,
            batch_size=self._batch,
        )
        return encode_rows(self.model.encode_text, batches, what="tokens", index="pair")

    @property
    def _batch(self) -> int:
        told = weights.run_config(self.path).get("eval.batch_size")
        return told if type(told) is int and told > 0 else _BATCH


def open_data(text: str) -> PersonDataset:
    """Open a data set written as NAME:ROOT, such as icfg_pedes:/data.

    Raises:
        ValueError: It is written otherwise, or the name is unknown.
        DatasetMissing, AnnotationError: See `open_dataset`.
    """
    name, colon, root = text.partition(":")
    if name == "tfds":
        reader, colon, root = root.partition(":")
        name = f"tfds:{reader}"
    if not (colon and root):
        raise ValueError(
            f"data set {text!r}: wanted NAME:ROOT, as in icfg_pedes:/data; names are "
            f"{', '.join(READERS)}, with tfds: before a name for prepared ones"
        )
    if name.removeprefix("tfds:") not in READERS:
        raise ValueError(hints.unknown("data set", name, READERS))
    root = near(found(root, what=f"data set {name}"), what=f"data set {name}")
    # Drawn people are read as they are, never drawn here.
    options = recorded_options(root) if name == "synthetic" else {}
    return open_dataset(name, root, **options)


def split_to_measure(data: PersonDataset, name: str = "") -> Split:
    """Return the split of that name; by default test, or else val.

    Raises:
        ValueError: It has no captions.
    """
    if not name:
        name = next(iter(reversed(data.measurable)), "test")
    return data.evaluation_split(name)
