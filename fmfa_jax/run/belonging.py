# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint belongs to a run, and what is said of one that does."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.hints import printable
from fmfa_jax.run import identity
from fmfa_jax.run.manifests import Manifest


class CheckpointMismatchError(ValueError):
    """A sound checkpoint that belongs to another run."""


def check(
    saved: Manifest, own: Mapping[str, Any], arrays: Mapping[str, str], where: Path
) -> None:
    """Refuse a checkpoint of another run.

    Args:
        saved: Of the checkpoint.
        own: Identity of the run.
        arrays: What `states.describe` says of its state.
        where: Folder of the checkpoint.

    Raises:
        CheckpointMismatchError: Names all that differs.
    """
    before, wanted, _ = identity.comparable(saved.identity, own)
    if lines := identity.differences(before, wanted):
        raise CheckpointMismatchError(
            f"{_name(where)} belongs to another configuration:\n"
            + "\n".join(lines)
            + "\nUse the configuration and files it was saved with, or another "
            "working folder"
        )
    if lines := identity.differences(saved.arrays, arrays):
        raise CheckpointMismatchError(
            f"{_name(where)} holds other arrays than this model, this optimiser "
            "and this version of the code need; go on with those that it was saved "
            "by, or in another working folder:\n" + "\n".join(lines)
        )


def notes(
    saved: Manifest, own: Mapping[str, Any], told: Mapping[str, Any], where: Path
) -> Iterator[str]:
    """What is not as it was, or cannot be known, of a checkpoint in use.

    Args:
        saved: Of the checkpoint.
        own: Identity of the run.
        told: What may have changed since, but is said.
        where: Folder of the checkpoint.
    """
    if not identity.comparable(saved.identity, own)[2]:
        yield (
            f"note: {_name(where)} was saved by an earlier version, which knew "
            "first weights, tokenizer and data by their paths: those of this run "
            "are taken for the same"
        )
    if lines := identity.differences(saved.told, told) if saved.told else []:
        changed = ", ".join(line.split(":")[0].strip() for line in lines)
        yield (
            f"note: changed since {_name(where)} was saved: {changed}; training "
            "goes on, but figures before and after do not compare"
        )


def _name(path: Path) -> str:
    return printable(str(path))
