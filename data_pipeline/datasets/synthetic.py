# SPDX-License-Identifier: Apache-2.0
"""Drawn people: written into the root on first use, then read like CUHK-PEDES."""

from dataclasses import replace

from data_pipeline import synthetic
from data_pipeline.datasets import cuhk_pedes
from data_pipeline.records import PersonDataset

POPULATION = "population.json"
"""The file beside CUHK-PEDES/ that tells a drawn population, and its options."""


def read(
    root: str,
    *,
    identities: int = 400,
    images_per_identity: int = 4,
    seed: int = 0,
    style: str = "studio",
    val_identities: int = 0,
    test_identities: int = 100,
    image_size: tuple[int, int] = (192, 96),
    workers: int = 1,
) -> PersonDataset:
    """Read the population in `root`, drawing it first where there is none.

    Args:
        root: the population's own folder.
        identities: people to train on.
        images_per_identity: pictures of each person.
        seed: other seeds are other people.
        style: "studio", "street" or "both".
        val_identities: people of val, besides those to train on.
        test_identities: people of test, besides those to train on.
        image_size: (height, width) of the pictures.
        workers: processes that draw; the result does not depend on it.

    Raises:
        ValueError: an option is out of range.
        FileExistsError: `root` holds a population of other options, or other files.
    """
    folder = synthetic.write_population(
        root,
        identities=identities,
        images_per_identity=images_per_identity,
        seed=seed,
        style=style,
        val_identities=val_identities,
        test_identities=test_identities,
        image_size=image_size,
        workers=workers,
    )
    return replace(cuhk_pedes.read(str(folder)), name="synthetic")
