# SPDX-License-Identifier: Apache-2.0
"""The one door to all data sets: `open_dataset(name, root)`.

    cuhk_pedes, icfg_pedes, rstp_reid, ufine6926 (unverified)   published data sets
    folder      your own pictures with a captions.jsonl
    synthetic   drawn people: written into the root on first use, then read
    tfds:NAME   any of them (not synthetic) as prepared by data_pipeline.datasets.tfds;
                the root is TFDS's data_dir

Nothing here downloads anything.
"""

import difflib
import inspect
from collections.abc import Callable

from data_pipeline.datasets import (
    cuhk_pedes,
    folder,
    icfg_pedes,
    rstp_reid,
    synthetic,
    ufine6926,
)
from data_pipeline.datasets.annotations import AnnotationError, DatasetMissing
from data_pipeline.records import PersonDataset

READERS: dict[str, Callable[..., PersonDataset]] = {
    "cuhk_pedes": cuhk_pedes.read,
    "icfg_pedes": icfg_pedes.read,
    "rstp_reid": rstp_reid.read,
    "ufine6926": ufine6926.read,
    "folder": folder.read,
    "synthetic": synthetic.read,
}
PREPARABLE = tuple(name for name in READERS if name != "synthetic")
"""The names that exist as tfds:NAME, too."""

__all__ = ["PREPARABLE", "READERS", "AnnotationError", "DatasetMissing", "open_dataset"]


def open_dataset(name: str, root: str, **options: object) -> PersonDataset:
    """Read a data set's annotation; pictures are read later, one by one.

    Args:
        name: see the module's docstring.
        root: where it lies; `~` is the home folder.
        **options: what the reader takes (only synthetic takes any).

    Raises:
        ValueError: an unknown name or option; the message names the near ones.
        DatasetMissing: the files are not there.
        AnnotationError: the annotation is malformed.
    """
    known = [*READERS, *(f"tfds:{reader}" for reader in PREPARABLE)]
    if name not in known:
        raise ValueError(_unknown("data set", name, known))
    if name.startswith("tfds:"):
        _check_options(name, options, [])
        # TensorFlow takes seconds to import: only who asks for it pays.
        from data_pipeline.datasets.tfds.reader import read_prepared

        return read_prepared(name.removeprefix("tfds:"), root)
    reader = READERS[name]
    _check_options(name, options, list(inspect.signature(reader).parameters)[1:])
    return reader(root, **options)


def _check_options(name: str, options: dict[str, object], known: list[str]) -> None:
    for option in options:
        if option not in known:
            raise ValueError(_unknown(f"option of data set {name!r}", option, known))


def _unknown(what: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    nearest = f"; near: {', '.join(near)}" if near else ""
    return f"unknown {what}: {name!r}{nearest}; known: {', '.join(known) or 'none'}"
