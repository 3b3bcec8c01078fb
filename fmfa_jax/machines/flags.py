# SPDX-License-Identifier: Apache-2.0
"""What XLA reads from the environment once. Nothing here may import JAX."""

import importlib.util
import os
import pkgutil
from collections.abc import MutableMapping

# Collectives and copies run beside the products that do not wait for them.
OVERLAPPING = "--xla_gpu_enable_latency_hiding_scheduler=true"
# Sums in a fixed order: no atomic additions, no kernels that were chosen by timing.
REPRODUCIBLE = "--xla_gpu_exclude_nondeterministic_ops=true"
# JAX takes 75 % of a GPU and leaves the rest unused. Other programs on the card, such
# as a desktop's, hold a few hundred MB.
MEMORY = "XLA_CLIENT_MEM_FRACTION"
SHARE = "0.92"
NAMES = (
    "JAX_PLATFORMS",
    "LIBTPU_INIT_ARGS",
    "XLA_FLAGS",
    MEMORY,
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
)
"""Variables that change how a run computes, for environment.json."""


def set_flags(
    environ: MutableMapping[str, str] = os.environ, *, deterministic: bool = False
) -> None:
    """Set what suits GPUs, before JAX is imported; the user's own values stay.

    Without a GPU's plugin nothing is set: other builds of XLA may not know the flags,
    and end the program at one that they do not know.

    Args:
        environ: Environment to change.
        deterministic: Equal bits in every run, at some cost.
    """
    if not has_gpu_plugin():
        return
    flags = environ.get("XLA_FLAGS", "").split()
    chosen = {flag.partition("=")[0] for flag in flags}
    wanted = [OVERLAPPING, *([REPRODUCIBLE] if deterministic else [])]
    flags += [flag for flag in wanted if flag.partition("=")[0] not in chosen]
    environ["XLA_FLAGS"] = " ".join(flags)
    # JAX refuses its new and its old name for this together.
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in environ:
        environ.setdefault(MEMORY, SHARE)


def has_gpu_plugin() -> bool:
    """Return whether JAX's plugin for NVIDIA's or AMD's GPUs is installed."""
    found = importlib.util.find_spec("jax_plugins")
    if found is None or found.submodule_search_locations is None:
        return False
    modules = pkgutil.iter_modules(found.submodule_search_locations)
    return any(module.name.startswith(("xla_cuda", "xla_rocm")) for module in modules)
