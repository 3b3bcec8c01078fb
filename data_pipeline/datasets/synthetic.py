# SPDX-License-Identifier: Apache-2.0
"""Drawn people: written into the root on first use, then read like CUHK-PEDES."""

from dataclasses import replace
from typing import Any

from data_pipeline.datasets.layout import read_layout
from data_pipeline.datasets.published import LAYOUTS
from data_pipeline.records import PersonDataset
from data_pipeline.synthetic import population

OPTIONS = (*population.OPTIONS, "workers")
"""The options that `read` takes."""


def read(root: str, **options: Any) -> PersonDataset:
    """Read the population in `root`, drawing it first if there is none.

    Args:
        root: The population's own folder.
        **options: See `write_population`.

    Raises:
        ValueError: If an option is out of range.
        FileExistsError: If `root` contains a population of other options, or other
            files.
    """
    folder = population.write_population(root, **options)
    return replace(read_layout(LAYOUTS["cuhk_pedes"], str(folder)), name="synthetic")
