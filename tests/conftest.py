# SPDX-License-Identifier: Apache-2.0
"""Settings that must stand before JAX is imported."""

import os
from contextlib import ExitStack

import pytest

from tests.compiling import quick

# Eight devices on one host: every test may build meshes of 1, 2, 4 or 8.
given = os.environ.get("XLA_FLAGS", "")
os.environ.update(quick(8))
os.environ["XLA_FLAGS"] += f" {given}"
# XLA has a thread for each core or device. A collective keeps one until all devices
# have come, so with no more two in different orders wait for ever.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Files of a minute or more, which start first: one that started last would leave the
# other worker idle.
LONG = {
    "test_accelerator.py",
    "test_bucket_runs.py",
    "test_devices.py",
    "test_failure.py",
    "test_figures_command.py",
    "test_learning.py",
    "test_loop.py",
    "test_protocols.py",
    "test_rde_run.py",
    "test_readme.py",
    "test_smoke.py",
    "test_weak_run.py",
}


def pytest_collection_modifyitems(items):
    """Move the long files to the start, each in its own order."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def stores():
    """Object stores on this machine; see `tests.stores`."""
    from tests.stores import Stores

    before = dict(os.environ)
    with ExitStack() as stack:
        yield Stores(stack)
    os.environ.clear()
    os.environ.update(before)
