# SPDX-License-Identifier: Apache-2.0
"""What a device can do, asked by its kind and capability, not by its platform.

ROCm's devices are "gpu" as NVIDIA's are; an old card is one as a new card is.
"""

from typing import Any

# AMD's GPUs before CDNA and RDNA 3, by the prefix of their names.
_ROCM_WITHOUT_BFLOAT16 = ("gfx8", "gfx900", "gfx906", "gfx10")
AMPERE = (8, 0)


def capability(device: Any) -> tuple[int, int] | None:
    """Return the compute capability of an NVIDIA card, None for anything else.

    Args:
        device: A jax.Device, or what has its attributes.
    """
    name = str(getattr(device, "compute_capability", None) or "")
    major, _, minor = name.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def has_bfloat16(device: Any) -> bool:
    """Return whether products of bfloat16 are faster than those of float32.

    Not on CPUs, on NVIDIA's cards before Ampere (V100, T4), and on AMD's before CDNA.
    """
    if device.platform != "gpu":
        return device.platform == "tpu"
    if (nvidia := capability(device)) is not None:
        return nvidia >= AMPERE
    name = str(getattr(device, "compute_capability", ""))
    return name.startswith("gfx") and not name.startswith(_ROCM_WITHOUT_BFLOAT16)


def has_cudnn_attention(device: Any) -> bool:
    """Return whether cuDNN's fused attention in bfloat16 runs on a device."""
    return device.platform == "gpu" and (capability(device) or (0, 0)) >= AMPERE
