# SPDX-License-Identifier: Apache-2.0
"""What the tests of whole runs share."""

import functools

import jax
import pytest

from fmfa_jax.training import session, sharding

DEVICES = 2


@pytest.fixture(scope="module")
def two_devices():
    """Runs take two of the simulated devices: on two cores, eight only wait."""
    with pytest.MonkeyPatch.context() as patch:
        make = functools.partial(sharding.make_mesh, devices=jax.devices()[:DEVICES])
        patch.setattr(session, "make_mesh", make)
        yield
