# SPDX-License-Identifier: Apache-2.0
"""What the tests of whole runs share."""

import functools

import jax
import pytest

from fmfa_jax.machines import mesh as sharding
from fmfa_jax.training import session

DEVICES = 2


@pytest.fixture(scope="module")
def quick_compiles():
    """Half the time to compile, which is most of the time of small runs."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def two_devices():
    """Runs take two of the simulated devices: on two cores, eight only wait."""
    with pytest.MonkeyPatch.context() as patch:
        make = functools.partial(sharding.make_mesh, devices=jax.devices()[:DEVICES])
        patch.setattr(session, "make_mesh", make)
        yield
