# SPDX-License-Identifier: Apache-2.0
"""SHA-256 manifests, which make damage to a checkpoint visible.

Orbax restores a file with a flipped bit without an error and silently casts a wrong
dtype, so every checkpoint folder carries `manifest.json`: names, sizes and digests of
its files, the step, the dtypes and shapes of its arrays, and the identity of the run.
This module knows only files, no arrays.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.findings import shortened
from data_pipeline.hints import printable
from data_pipeline.regular import read_json

MANIFEST = "manifest.json"
# Bookkeeping that Orbax still rewrites after the digests are taken; no array is read
# from it.
UNSEALED = frozenset({MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"})
# What systems leave in folders that were looked at, besides hidden files.
DROPPINGS = frozenset({"Thumbs.db", "desktop.ini"})
LARGEST_MANIFEST = 8 << 20


class CorruptCheckpointError(ValueError):
    """The files of a checkpoint are not the ones its manifest was written for."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is, apart from its files.

    Attributes:
        step: Training step.
        identity: What the run computes; another run must not load the checkpoint.
        arrays: Path -> "dtype[shape]" of each array.
        told: What may differ in a run that goes on, but is said.
    """

    step: int
    identity: dict[str, Any]
    arrays: dict[str, str]
    told: dict[str, Any] = field(default_factory=dict)


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return `value` as it comes back from JSON (tuples become lists)."""
    return json.loads(json.dumps(value, sort_keys=True))


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of the files that are in `folder` now."""
    names = sorted(_sealed_files(folder))
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = list(pool.map(lambda name: _digest(folder / name), names))
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, digests, strict=True)
    }
    body = {**asdict(manifest), "files": files}
    text = {"sha256": _digest_of(body), "body": body}
    (folder / MANIFEST).write_text(json.dumps(text, indent=1), encoding="utf-8")


def verify(folder: Path) -> Manifest:
    """Check that `folder` holds the files of its manifest, no others, and its step.

    Hidden files, as file browsers leave them, do not count.

    Raises:
        CorruptCheckpointError: Names the first thing that is missing or differs.
    """
    if folder.is_symlink() or not folder.is_dir():
        kind = "a link" if folder.is_symlink() else "no folder"
        raise CorruptCheckpointError(f"it is {kind}, wanted a folder of our own")
    body = _read_body(folder / MANIFEST)
    files = body.pop("files")
    _check_names(folder, files)
    for name, expected in files.items():
        _check_size(folder / name, expected["bytes"])
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = pool.map(lambda name: _digest(folder / name), files)
    for (name, expected), digest in zip(files.items(), digests, strict=True):
        if digest != expected["sha256"]:
            raise CorruptCheckpointError(
                f"{printable(name)} has SHA-256 {digest[:12]}.., wanted "
                f"{expected['sha256'][:12]}..: its content was changed"
            )
    if str(body["step"]) != folder.name:
        raise CorruptCheckpointError(
            f"it was saved as step {body['step']}: its folder was renamed or copied"
        )
    return Manifest(**body)


def damage(folder: Path) -> str:
    """Why a checkpoint does not verify; empty if it does."""
    try:
        verify(folder)
    except (CorruptCheckpointError, OSError) as error:
        return str(error)
    return ""


def _read_body(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CorruptCheckpointError(
            f"it has no {MANIFEST}: the save did not finish or files were removed"
        )
    try:
        text = read_json(path, largest=LARGEST_MANIFEST)
        body, digest = text["body"], text["sha256"]
        own = _digest_of(body)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"{MANIFEST} is unreadable: {shortened(str(error), 200)}"
        ) from error
    if own != digest:
        raise CorruptCheckpointError(f"{MANIFEST} does not match its own SHA-256")
    _check_form(body)
    return body


def _check_form(body: Any) -> None:
    """Check the types of a body, whose digest says nothing of them."""
    forms = {"step": int, "identity": dict, "arrays": dict, "files": dict, "told": dict}
    sound = isinstance(body, dict) and {"told", *body} == forms.keys()
    sound = sound and all(type(body[key]) is forms[key] for key in body)
    sound = sound and all(type(each) is str for each in body["arrays"].values())
    for each in body["files"].values() if sound else ():
        sound = sound and isinstance(each, dict) and each.keys() == {"bytes", "sha256"}
        sound = sound and (type(each["bytes"]), type(each["sha256"])) == (int, str)
    if not sound:
        raise CorruptCheckpointError(f"{MANIFEST} does not have the form of one")


def _sealed_files(folder: Path) -> list[str]:
    """Everything but folders: also links that lead nowhere, pipes and devices."""
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if (path.is_symlink() or not path.is_dir())
        and path.name not in UNSEALED | DROPPINGS
        and not path.name.startswith(".")
    ]


def _check_names(folder: Path, files: Mapping[str, Any]) -> None:
    found = set(_sealed_files(folder))
    if missing := sorted(files.keys() - found):
        raise CorruptCheckpointError(f"{_some(missing)} is missing")
    if surplus := sorted(found - files.keys()):
        raise CorruptCheckpointError(f"{_some(surplus)} was not saved with it")


def _some(names: list[str]) -> str:
    more = f", and {len(names) - 1} more," if len(names) > 1 else ""
    return f"{shortened(names[0], 200)}{more}"


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise CorruptCheckpointError(f"{printable(path.name)} is no file")
    if path.stat().st_size != expected:
        raise CorruptCheckpointError(
            f"{printable(path.name)} has {path.stat().st_size} bytes, wanted {expected}"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(body: Any) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
