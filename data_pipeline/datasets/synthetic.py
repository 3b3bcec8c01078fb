# SPDX-License-Identifier: Apache-2.0
"""Drawn people: written into the root on first use, then read like CUHK-PEDES.

The population is drawn beside the root and moved into place when it is complete, so an
interrupted first use leaves nothing half-written there, and of several processes that
start together one wins.
"""

import json
import logging
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from data_pipeline.datasets import cuhk_pedes
from data_pipeline.datasets.annotations import AnnotationError
from data_pipeline.records import PersonDataset

POPULATION = "population.json"
_log = logging.getLogger(__name__)


def read(
    root: str,
    *,
    identities: int = 400,
    images_per_identity: int = 4,
    seed: int = 0,
    style: str = "studio",
    val_identities: int = 0,
    test_identities: int = 100,
) -> PersonDataset:
    """Read the population in `root`, drawing it first where there is none.

    Args:
        root: the population's own folder.
        identities: people in all, those of val and test included.
        images_per_identity: pictures of each.
        seed: populations of different seeds are different people.
        style: "studio" or "street".
        val_identities: how many of the people are val.
        test_identities: how many of the people are test.

    Raises:
        ValueError: the root holds a population that was drawn with other options, or
            something else.
    """
    options = dict(locals())
    folder = Path(options.pop("root")).expanduser().absolute()
    if not (folder / POPULATION).is_file():
        _draw(folder, options)
    _compare(folder / POPULATION, options)
    return replace(cuhk_pedes.read(str(folder)), name="synthetic")


def _draw(folder: Path, options: dict[str, int | str]) -> None:
    # Only who draws pays for importing the painter.
    from data_pipeline.synthetic import write_population

    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"wanted an empty folder or a drawn population at {folder}, got other "
            f"files and no {POPULATION}: choose another root"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    _log.info("drawing a population into %s: %s", folder, options)
    try:
        write_population(str(partial), **options)
        partial.chmod(0o755)  # mkdtemp makes folders that only their owner may enter
        os.rename(partial, folder)
    except OSError:
        if not (folder / POPULATION).is_file():
            raise
        _log.info("another process has drawn %s in the meantime", folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _compare(path: Path, options: dict[str, int | str]) -> None:
    try:
        drawn = json.loads(path.read_text("utf-8"))
        different = {k: v for k, v in options.items() if drawn[k] != v}
    except (ValueError, KeyError, TypeError) as error:
        raise AnnotationError(
            f"{path}: wanted the options {sorted(options)}, got: {error!r}"
        ) from error
    if different:
        raise ValueError(
            f"the population in {path.parent} was drawn with other options: "
            + "; ".join(
                f"{k}: {drawn[k]!r} there, {v!r} asked" for k, v in different.items()
            )
            + ". Ask for the same, or choose another root"
        )
