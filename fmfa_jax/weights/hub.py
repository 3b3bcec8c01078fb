# SPDX-License-Identifier: Apache-2.0
"""Weights on the Hugging Face Hub: `hf://ORG/NAME[/FILE][@REVISION]`.

Files are fetched into the hub's own cache and read there like any others; nothing of a
repository is run. A file whose content is not what the hub states is thrown away. What
is in the cache is found without a network, too.
"""

import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import NamedTuple, NoReturn

from data_pipeline.command import found, say
from fmfa_jax.weights.folders import FILES, INDEX, shard_names
from fmfa_jax.weights.tensors import MAX_LISTED, WeightsError, shown

SCHEME = "hf://"
FORM = "hf://ORG/NAME[/FILE][@REVISION]"
CARD = ("README.md", "LICENSE")

# What readers look for beside weights. It is fetched first: where weights are in the
# cache, what says how they compute is there, too.
_BESIDE = ("config.json", "preprocessor_config.json", "open_clip_config.json")
_BESIDE += ("vocab.json", "merges.txt", "tokenizer_config.json")
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
# The hub's own form has the revision in the middle: hf://ORG/NAME[@REVISION][/FILE].
_REVISION_LAST = re.compile(r"(hf://[^/@]+/[^/@]+)/([^@]+)@(.+)")
# What the hub calls a content by: the SHA-256 of large files, git's SHA-1 of others.
_SHA256, _GIT = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{40}")


class Named(NamedTuple):
    """What a name says: a repository, its revision, a file or folder in it or ""."""

    repo: str
    revision: str
    file: str


@dataclass(frozen=True)
class Fetched:
    """Weights from the hub, on this machine.

    Attributes:
        place: The file, or the folder that holds the weights.
        name: The weight file on the hub, at the commit that was read.
        files: All files that belong to the weights.
    """

    place: Path
    name: str
    files: tuple[Path, ...]


def is_hub(path: str | Path) -> bool:
    """Whether weights are named by their place on the hub."""
    return os.fspath(path).startswith(SCHEME)


def weights_path(text: str, *, what: str) -> str:
    """Return the name of weights: one on the hub as it is, others as `found` does.

    Raises:
        ValueError: It is neither.
    """
    return text if is_hub(text) else found(text, what=what)


def located(path: str | Path) -> str | Path:
    """Return where weights lie on this machine: a path as it is; the hub's are fetched.

    Raises:
        WeightsError: See `fetch`.
    """
    return fetch(os.fspath(path)).place if is_hub(path) else path


def fetch(name: str, *, also: tuple[str, ...] = ()) -> Fetched:
    """Fetch weights with what belongs to them, unless they are in the cache.

    Args:
        name: See `FORM`; without a file, the weights are chosen as in any folder.
        also: Further files to fetch from their folder, where there are such.

    Raises:
        WeightsError: They are neither to be had from the hub nor in the cache, or a
            file has another content than the hub states.
    """
    asked = parse(name)
    with refusals(name, asked):
        store = _open(name, asked, also)
        main = _weights_of(name, asked, store)
        folder = PurePosixPath(main).parent
        near = [str(folder / each) for each in (*_BESIDE, *also)]
        files = [store.get(each) for each in near if store.has(each)]
        files.append(weights := store.get(main))
        if main.endswith(INDEX):
            files += [store.get(str(folder / each)) for each in shard_names(weights)]
        for file in files:
            _check(name, file)
    root = weights.parents[len(folder.parts)]
    if {file.parent for file in files} != {weights.parent}:
        raise WeightsError(f"{name} has changed while it was fetched; fetch it again")
    place = weights if asked.file == main else weights.parent
    return Fetched(place, f"{SCHEME}{asked.repo}@{root.name}/{main}", tuple(files))


def parse(name: str) -> Named:
    """Take a name apart.

    Raises:
        WeightsError: It is none of a repository of models.
    """
    whole = _REVISION_LAST.sub(r"\1@\3/\2", name)
    try:
        found = library().parse_hf_uri(whole)
    except ValueError:
        found = None
    if found is None or found.type != "model" or found.id.count("/") != 1:
        raise WeightsError(f"wanted {FORM}, got {shown(name)}")
    return Named(found.id, found.revision or "main", found.path_in_repo.strip("/"))


def library() -> ModuleType:
    """The hub's own library, silent unless all is to be said."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.errors
    import huggingface_hub.utils

    if not logging.getLogger("fmfa_jax").isEnabledFor(logging.INFO):
        huggingface_hub.utils.disable_progress_bars()
        huggingface_hub.utils.logging.set_verbosity_error()
    return huggingface_hub


class _Cached:
    """What is on this machine of a revision."""

    def __init__(self, asked: Named) -> None:
        self._asked = asked

    def has(self, file: str) -> bool:
        """Whether it is there."""
        return isinstance(self._find(file), str)

    def get(self, file: str) -> Path:
        """Its path."""
        found = self._find(file)
        if not isinstance(found, str):
            raise WeightsError(f"{self._asked.repo}: {shown(file)} is not in the cache")
        return Path(found)

    def listed(self) -> list[str]:
        """Nothing: a cache has what was asked for before."""
        return []

    def _find(self, file: str) -> object:
        if not file:
            return None
        return library().try_to_load_from_cache(
            self._asked.repo, file, revision=self._asked.revision
        )


class _Hub(_Cached):
    """What the hub has of a revision; raises what its library raises."""

    def __init__(self, asked: Named) -> None:
        super().__init__(asked)
        hub = library()
        info = hub.HfApi().model_info(
            asked.repo,
            revision=asked.revision,
            files_metadata=True,
            timeout=hub.constants.HF_HUB_ETAG_TIMEOUT,
        )
        self._sizes = {each.rfilename: each.size for each in info.siblings or ()}

    def has(self, file: str) -> bool:
        """Whether it is there."""
        return file in self._sizes

    def get(self, file: str) -> Path:
        """Fetch it, unless the cache has it."""
        if file.endswith(_WEIGHTS) and not super().has(file):
            size = f"{(self._sizes.get(file) or 0) / 1e6:.1f} MB"
            say(f"note: fetching {file} of {self._asked.repo}, {size}", sys.stderr)
        asked = self._asked
        return Path(
            library().hf_hub_download(asked.repo, file, revision=asked.revision)
        )

    def listed(self) -> list[str]:
        """What may be weights, by their names."""
        return sorted(each for each in self._sizes if each.endswith(_WEIGHTS))


def _open(name: str, asked: Named, also: Sequence[str]) -> _Cached:
    """The hub, or the cache where it knows as well, or the hub cannot be reached."""
    errors, cached = library().errors, _Cached(asked)
    # A file of a commit stays as it is; of an index, some shards may be missing.
    pinned = _GIT.fullmatch(asked.revision) and not asked.file.endswith(INDEX)
    if pinned and not also and cached.has(asked.file):
        return cached
    try:
        return _Hub(asked)
    except errors.HTTPError as error:
        reason = f"cannot be reached ({_first_line(error)})"
        if getattr(getattr(error, "response", None), "status_code", 500) < 500:
            raise
    except errors.OfflineModeIsEnabled:
        reason = "is not asked, as HF_HUB_OFFLINE says"
    constants = library().constants
    found = next(filter(cached.has, _candidates(asked)), None)
    if found is None:
        raise WeightsError(
            f"{name} is not in the cache {constants.HF_HUB_CACHE}, and "
            f"{constants.ENDPOINT} {reason}; fetch it where there is a network, by "
            f"`python -m fmfa_jax.weights pull {name} OUT`, and name the copy"
        )
    if not constants.is_offline_mode() or found != asked.file:
        note = f"note: {constants.ENDPOINT} {reason}: {name} is {found} of the cache"
        say(note, sys.stderr)
    return cached


def _candidates(asked: Named) -> list[str]:
    """Files that a name may mean, the first that exists."""
    if not asked.file:
        return list(FILES)
    return [asked.file, *(f"{asked.file}/{name}" for name in FILES)]


def _weights_of(name: str, asked: Named, store: _Cached) -> str:
    found = next(filter(store.has, _candidates(asked)), None)
    if found is not None:
        return found
    there = [shown(each) for each in store.listed()[:MAX_LISTED]]
    wanted = shown(asked.file) if asked.file else f"one of {', '.join(FILES)}"
    raise WeightsError(
        f"{name}: wanted {wanted}, which the repository does not have; what may be "
        f"weights there: {', '.join(there) or 'nothing'}. Name a file: {FORM}"
    )


def _check(name: str, file: Path) -> None:
    """Compare a file with what the hub calls its content by."""
    stated = Path(os.readlink(file)).name if file.is_symlink() else ""
    if _SHA256.fullmatch(stated):
        digest = hashlib.sha256()
    elif _GIT.fullmatch(stated):
        size = file.stat().st_size
        digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    else:
        return
    with file.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    if digest.hexdigest() != stated:
        file.resolve().unlink(missing_ok=True)
        file.unlink()
        raise WeightsError(
            f"{name}: {file.name} is damaged: the hub states {digest.name.upper()} "
            f"{stated}, its content has {digest.hexdigest()}; it was thrown away, "
            "fetch it again"
        )


@contextmanager
def refusals(name: str, asked: Named) -> Iterator[None]:
    """Raise as WeightsError, in the words of a user, what the hub's library raises."""
    errors = library().errors
    try:
        yield
    except WeightsError:
        raise
    # ValueError: an answer that is none of a hub; RuntimeError: hf_xet's way.
    except (
        errors.HTTPError,
        errors.XetDownloadError,
        OSError,
        ValueError,
        RuntimeError,
    ) as error:
        _refuse(name, asked, error)


def _refuse(name: str, asked: Named, error: Exception) -> NoReturn:
    errors, endpoint = library().errors, library().constants.ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        text = f"its terms are to be accepted at {endpoint}/{asked.repo}, and"
        text += " HF_TOKEN to say who asks"
    elif isinstance(error, errors.RepositoryNotFoundError):
        text = f"{endpoint} has no such repository, or keeps it from who does not log "
        text += "in: HF_TOKEN, or `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        text = f"{asked.repo} has no revision {shown(asked.revision)}"
    else:
        text = f"{endpoint}: {_first_line(error)}; try again"
    raise WeightsError(f"{name}: {text}") from error


def _first_line(error: BaseException) -> str:
    line = shown(str(error).strip().split("\n")[0] or type(error).__name__)
    return f"{line} ({_first_line(error.__cause__)})" if error.__cause__ else line
