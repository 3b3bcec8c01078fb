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
