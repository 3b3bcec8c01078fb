# SPDX-License-Identifier: Apache-2.0
"""The single entry point to all data sets: `open_dataset(name, root)`.

    cuhk_pedes, icfg_pedes, rstp_reid, ufine6926 (unverified)   published data sets
    folder      your own pictures with a captions.jsonl
    synthetic   drawn people: written into the root on first use, then read
    tfds:NAME   any of them (except synthetic) as prepared by
                data_pipeline.datasets.tfds; the root is TFDS's data_dir

Nothing here downloads anything.
"""

from collections.abc import Callable, Collection
from functools import partial

from data_pipeline import hints
from data_pipeline.copies import near
from data_pipeline.datasets import folder, synthetic
from data_pipeline.datasets.few import few_people
from data_pipeline.datasets.layout import read_layout
from data_pipeline.datasets.published import LAYOUTS
from data_pipeline.datasets.raw import AnnotationError, DatasetMissing
from data_pipeline.records import PersonDataset

READERS: dict[str, Callable[..., PersonDataset]] = {
    **{name: partial(read_layout, layout) for name, layout in LAYOUTS.items()},
    "folder": folder.read,
    "synthetic": synthetic.read,
}
_OPTIONS = {"folder": folder.OPTIONS, "synthetic": synthetic.OPTIONS}
PREPARABLE = tuple(name for name in READERS if name != "synthetic")
"""The names that also exist as tfds:NAME."""

__all__ = ["PREPARABLE", "READERS", "AnnotationError", "DatasetMissing", "open_dataset"]


def open_dataset(
    name: str, root: str, *, people: float = 1.0, **options: object
) -> PersonDataset:
    """Read a data set's annotation; pictures are read later, one by one.

    Args:
        name: Name of the data set; see the module's docstring.
        root: Folder of the data set, or its URL; see `copies`.
        people: Share of the training people to keep; see `few_people`.
        **options: Options of the reader (synthetic and folder have some).

    Raises:
        ValueError: If a name or option is unknown; the message suggests similar ones.
            If the share is out of range.
        DatasetMissing: If the files are not there.
        AnnotationError: If the annotation is malformed.
    """
    names = [*READERS, *(f"tfds:{reader}" for reader in PREPARABLE)]
    if name not in names:
        raise ValueError(hints.unknown("data set", name, names))
    _check_options(name, options, _OPTIONS.get(name, ()))
    root = near(root, what=f"data set {name}")
    return few_people(_read(name, root, options), people)


def _read(name: str, root: str, options: dict[str, object]) -> PersonDataset:
    known = _OPTIONS.get(name, ())
    options = {option: value for option, value in options.items() if option in known}
    if name.startswith("tfds:"):
        # TensorFlow takes seconds to import: only those who ask for it wait.
        from data_pipeline.datasets.tfds.reader import read_prepared

        return read_prepared(name.removeprefix("tfds:"), root)
    return READERS[name](root, **options)


def _check_options(
    name: str, options: dict[str, object], known: Collection[str]
) -> None:
    for option, value in options.items():
        # What is switched off may stay: a folder and its shards share their config.
        if option not in known and value:
            hint = hints.unknown("option", option, known)
            raise ValueError(f"data set {name!r}: {hint}")
