# SPDX-License-Identifier: Apache-2.0
"""What the tests of whole runs share."""

import jax
import pytest


@pytest.fixture(scope="module")
def quick_compiles():
    """Half the time to compile, which is most of the time of small runs."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """What tiny runs of all modules share: the first of them draws the population.

    Compiled programs lie there, too.
    """
    folder = tmp_path_factory.mktemp("shared")
    (folder / "compiled").mkdir()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shared, quick_compiles):
    """Where the tiny runs of a module lie."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("population", "compiled"):
        (folder / name).symlink_to(shared / name)
    return folder
