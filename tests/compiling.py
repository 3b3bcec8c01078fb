# SPDX-License-Identifier: Apache-2.0
"""How the processes of the tests compile: quickly, since a program runs a few times.

LLVM optimizes little, and XLA writes fused operations for CPUs with its older generator
of code, which LLVM is done with sooner. Most tests take half the time then.
"""

AS_USERS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}
"""Compiler options of a program that is compiled as users would nevertheless."""


def quick(devices: int = 1) -> dict[str, str]:
    """Return the variables of a process with so many simulated devices."""
    devices_flag = f"--xla_force_host_platform_device_count={devices}"
    return {
        "XLA_FLAGS": f"{devices_flag} --xla_cpu_use_fusion_emitters=false",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
