# SPDX-License-Identifier: Apache-2.0
"""Settings that must stand before JAX is imported."""

import os
from contextlib import ExitStack

import pytest

# Eight devices on one host: every test may build meshes of 1, 2, 4 or 8.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# XLA has a thread for each core or device. A collective keeps one until all devices
# have come, so with no more two in different orders wait for ever.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(scope="session")
def stores():
    """Object stores on this machine; see `tests.stores`."""
    from tests.stores import Stores

    before = dict(os.environ)
    with ExitStack() as stack:
        yield Stores(stack)
    os.environ.clear()
    os.environ.update(before)
