# SPDX-License-Identifier: Apache-2.0
"""SHA-256 manifests, which make damage to a checkpoint visible.

Orbax restores a file with a flipped bit without an error and silently casts a wrong
dtype, so every checkpoint folder carries `manifest.json`: sizes and digests of its
files, the step, the dtypes and shapes of its arrays, and the identity of the run. This
module knows only files, no arrays.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
# Bookkeeping that Orbax still rewrites after the digests are taken; no array is read
# from it.
UNSEALED = frozenset({MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"})


class CorruptCheckpointError(ValueError):
    """The files of a checkpoint are not the ones its manifest was written for."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is, apart from its files.

    Attributes:
        step: Training step.
        identity: What the run computes; another run must not load the checkpoint.
        arrays: Path -> "dtype[shape]" of each array.
    """

    step: int
    identity: dict[str, Any]
    arrays: dict[str, str]


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
    """Read the manifest of `folder` and check every file that it lists.

    Raises:
        CorruptCheckpointError: Names the first file that is missing or differs.
    """
    body = _read_body(folder / MANIFEST)
    files = body.pop("files")
    for name, expected in files.items():
        _check_size(folder / name, expected["bytes"])
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = pool.map(lambda name: _digest(folder / name), files)
    for (name, expected), digest in zip(files.items(), digests, strict=True):
        if digest != expected["sha256"]:
            raise CorruptCheckpointError(
                f"{name} has SHA-256 {digest[:12]}.., wanted "
                f"{expected['sha256'][:12]}..: its content was changed"
            )
    return Manifest(**body)


def _read_body(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CorruptCheckpointError(
            f"it has no {MANIFEST}: the save did not finish or files were removed"
        )
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
        body, digest = text["body"], text["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpointError(f"{MANIFEST} is unreadable: {error}") from error
    if _digest_of(body) != digest:
        raise CorruptCheckpointError(f"{MANIFEST} does not match its own SHA-256")
    return body


def _sealed_files(folder: Path) -> list[str]:
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in UNSEALED
    ]


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise CorruptCheckpointError(f"{path.name} is missing")
    if path.stat().st_size != expected:
        raise CorruptCheckpointError(
            f"{path.name} has {path.stat().st_size} bytes, wanted {expected}"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
