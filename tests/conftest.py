# SPDX-License-Identifier: Apache-2.0
"""Settings that must stand before JAX is imported."""

import os

# Eight devices on one host: every test may build meshes of 1, 2, 4 or 8.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
