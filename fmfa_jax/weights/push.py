# SPDX-License-Identifier: Apache-2.0
"""Weights go to the Hugging Face Hub, and come from it as plain files."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.command import say
from data_pipeline.regular import read_regular
from fmfa_jax.files import replacing, write_json, write_text
from fmfa_jax.weights.archive import sha256
from fmfa_jax.weights.card import model_card
from fmfa_jax.weights.export import export_hugging_face
from fmfa_jax.weights.hub import CARD, SCHEME, Named, fetch, library, parse, refusals
from fmfa_jax.weights.load import Loaded, load_params
from fmfa_jax.weights.native import save_native
from fmfa_jax.weights.opened import run_config
from fmfa_jax.weights.source import Source, open_source
from fmfa_jax.weights.tensors import WeightsError
from fmfa_jax.weights.tokenizer_files import tokenizer_of, write_tokenizer

FORMATS = ("native", "hf")
"""What is pushed: our file with all heads, or the folder that transformers opens."""

PUBLISHED = "model.safetensors"
"""What weights are called where they are published."""
_LARGEST_TABLE = 1 << 20
_PLACES = ("data.root", "data.tokenizer", "data.cache_dir", "init.path")
_PLACES += ("run.compilation_cache",)


@dataclass(frozen=True)
class Parcel:
    """Weights as they are published.

    Attributes:
        path: Run folder or weight file.
        to: A word of `FORMATS`.
        tokenizer: "clip" or a folder; "" takes the one that belongs to the weights.
    """

    path: str
    to: str = "native"
    tokenizer: str = ""

    def pack(self, folder: Path, repo: str) -> None:
        """Write all files of the repository.

        Raises:
            WeightsError: See `load_params` and `write_tokenizer`.
        """
        source = open_source(self.path)
        loaded = load_params(self.path)
        sizes = loaded.config
        tokenizer = self.tokenizer or tokenizer_of(self.path, sizes.vocab_size)
        if not tokenizer:
            raise WeightsError(
                f"{self.path}: nothing says which tokenizer is the model's, and "
                "without it nobody can use the weights: name it with --tokenizer"
            )
        config = _publishable(run_config(self.path))
        if self.to == "hf":
            export_hugging_face(folder, loaded.params, sizes, tokenizer=tokenizer)
        else:
            _pack_native(folder, source, loaded, tokenizer)
            if config:
                write_json(folder / "config.json", config)
        card = model_card(
            repo,
            sizes,
            config,
            to=self.to,
            weights=sha256(folder / PUBLISHED),
            about=source.archive.metadata,
            table=_last_table(self.path, source.archive.metadata),
        )
        write_text(folder / CARD[0], card)


def push(parcel: Parcel, name: str, *, public: bool, new_card: bool) -> str:
    """Upload weights with their tokenizer and a model card, in one commit.

    Args:
        parcel: The weights.
        name: hf://ORG/NAME[@BRANCH]; the repository and the branch are made where
            there are none.
        public: Whether a repository that is made can be seen by all.
        new_card: Replace a README.md that the repository has.

    Returns:
        The name at the commit that was made.

    Raises:
        WeightsError: The weights cannot be read, or the hub refuses them.
    """
    asked = parse(name)
    if asked.file:
        raise WeightsError(f"wanted hf://ORG/NAME[@BRANCH] to push to, got {name}")
    with tempfile.TemporaryDirectory() as packed:
        parcel.pack(Path(packed), asked.repo)
        with refusals(name, asked):
            return _upload(sorted(Path(packed).iterdir()), asked, public, new_card)


def _upload(files: Sequence[Path], asked: Named, public: bool, new_card: bool) -> str:
    api = library().HfApi()
    api.create_repo(asked.repo, private=not public, exist_ok=True)
    if asked.revision != "main":
        api.create_branch(asked.repo, branch=asked.revision, exist_ok=True)
    there = api.list_repo_files(asked.repo, revision=asked.revision)
    if CARD[0] in there and not new_card:
        say(f"note: the repository keeps its {CARD[0]}; --new-card replaces it")
        files = [each for each in files if each.name != CARD[0]]
    done = api.create_commit(
        asked.repo,
        [library().CommitOperationAdd(each.name, each) for each in files],
        commit_message="Weights, their tokenizer and what is known of them",
        revision=asked.revision,
    )
    return f"{SCHEME}{asked.repo}@{done.oid}"


def pull(name: str, out: str) -> tuple[Path, ...]:
    """Copy weights from the hub to a new file or folder, licence and card included.

    Returns:
        What was written.

    Raises:
        WeightsError: See `fetch`; or the name is taken.
    """
    place = Path(out)
    if place.exists():
        raise WeightsError(f"cannot write {out}: it is there already; name a new one")
    found = fetch(name, also=CARD)
    with replacing(place) as draft:
        if found.place.is_file():
            shutil.copyfile(found.place, draft)
            return (place,)
        draft.mkdir()
        for file in found.files:
            shutil.copyfile(file, draft / file.name)
    return tuple(place / file.name for file in found.files)


def _pack_native(folder: Path, source: Source, loaded: Loaded, tokenizer: str) -> None:
    """Write the weights; a file of ours as it is, so that its SHA-256 stays."""
    about = source.archive.metadata
    if about.get("format") == "fmfa_jax":
        if "source" in about:
            say(f"note: the file says what it was made of: {about['source']}")
        shutil.copyfile(source.path, folder / PUBLISHED)
    else:
        origin = {"source_sha256": loaded.report.sha256}
        save_native(folder / PUBLISHED, loaded.params, loaded.config, origin)
    write_tokenizer(
        folder,
        tokenizer,
        vocab_size=loaded.config.vocab_size,
        context_length=loaded.config.context_length,
    )


def _publishable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a config says of the machine that it was written on."""
    return {
        key: value
        for key, value in config.items()
        if key not in _PLACES and not str(value).startswith(("/", "~"))
    }


def _last_table(path: str, about: Mapping[str, str]) -> str:
    """Return the table that the run wrote of these weights; "" if there is none."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    step = about.get("step", "")
    for name in (step, f"{step}-val") if step.isdecimal() else ():
        table = folder / "eval" / name / "table.md"
        if table.is_file():
            return read_regular(table, largest=_LARGEST_TABLE).decode()
    return ""
