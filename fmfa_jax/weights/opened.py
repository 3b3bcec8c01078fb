# SPDX-License-Identifier: Apache-2.0
"""A model opened together with the tokenizer that belongs to it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.regular import read_json
from data_pipeline.tokenizer import WordTokenizer, open_tokenizer
from fmfa_jax.models import Retriever
from fmfa_jax.weights.hub import located
from fmfa_jax.weights.load import load_model
from fmfa_jax.weights.tensors import WeightsError
from fmfa_jax.weights.tokenizer_files import CLIP_VOCABULARY, tokenizer_of


@dataclass(frozen=True)
class OpenedModel:
    """Both towers and what reads sentences for them.

    Attributes:
        model: Both towers.
        tokenizer: The model's tokenizer.
        tokenizer_name: "clip" or a folder.
    """

    model: Retriever
    tokenizer: WordTokenizer
    tokenizer_name: str


def open_with_tokenizer(
    path: str | Path, *, tokenizer: str | None = None, **stated: Any
) -> OpenedModel:
    """Open a run folder or weight file with the tokenizer that belongs to it.

    Args:
        path: See `load_params`.
        tokenizer: "clip" or a folder with vocab.json and merges.txt; by default what
            lies beside the weights or the run's config.json names, or "clip" if the
            vocabulary has CLIP's size.
        **stated: Further arguments of `load_model`.

    Raises:
        WeightsError: See `load_params`; or the tokenizer is not the model's.
    """
    path = located(path)
    model = load_model(path, **stated)
    vocabulary = model.config.vocab_size
    name = tokenizer or tokenizer_of(path, vocabulary)
    if not name:
        raise WeightsError(
            f"the model has a vocabulary of {vocabulary}, CLIP's has "
            f"{CLIP_VOCABULARY}: name the folder of its tokenizer with --tokenizer"
        )
    return OpenedModel(model, fitting_tokenizer(name, vocabulary), name)


def fitting_tokenizer(name: str, vocabulary: int) -> WordTokenizer:
    """Open a tokenizer of as many entries as the model has.

    Raises:
        WeightsError: It cannot be read, or has another size.
    """
    try:
        tokenizer = open_tokenizer(name)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{error}; name the model's with --tokenizer") from error
    if tokenizer.vocab_size != vocabulary:
        raise WeightsError(
            f"the tokenizer {name!r} has {tokenizer.vocab_size} entries, the model "
            f"wants {vocabulary}; name the model's with --tokenizer"
        )
    return tokenizer


def run_config(path: str | Path) -> dict[str, Any]:
    """Return the flat config.json of a run: dotted key -> value; {} outside of runs.

    Args:
        path: Run folder, or a weight file in it.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    try:
        values = read_json(folder / "config.json")
    except (OSError, ValueError):
        return {}
    # Hugging Face's folders have a config.json, too, without sections.
    is_run = isinstance(values, dict) and any("." in key for key in values)
    return values if is_run else {}
