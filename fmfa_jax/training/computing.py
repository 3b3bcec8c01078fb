# SPDX-License-Identifier: Apache-2.0
"""How a model computes on a device, where the config leaves it to the device."""

from typing import Any

from fmfa_jax import models
from fmfa_jax.machines.devices import has_bfloat16, has_cudnn_attention

AUTO = "auto"


def computing(
    device: Any,
    *,
    dtype: str = AUTO,
    precision: str = "highest",
    products: str = AUTO,
    attention: str = AUTO,
    remat: str = AUTO,
    scan_unroll: int = 1,
) -> models.Compute:
    """What `models.Compute` says, with every "auto" replaced by what suits a device.

    Args:
        device: A jax.Device, or what has its attributes.
        dtype: These and the following: see `models.Compute`.
        precision: See there.
        products: See there.
        attention: See there.
        remat: See there.
        scan_unroll: See there.

    Raises:
        ValueError: cuDNN's attention is asked for where it is not to be had.
    """
    accelerator = device.platform != "cpu"
    dtype = _or(dtype, "bfloat16" if has_bfloat16(device) else "float32")
    fused = has_cudnn_attention(device) and dtype == "bfloat16"
    if attention == "cudnn" and not fused:
        raise ValueError(
            "config.model.attention=cudnn: wanted bfloat16 towers on an NVIDIA card, "
            f"Ampere or newer, got {dtype} on {device.device_kind}; take auto or xla"
        )
    return models.Compute(
        dtype=dtype,
        precision=precision,
        products=_or(products, "compute" if accelerator else "float32"),
        attention=_or(attention, "cudnn" if fused else "xla"),
        remat=_or(remat, "elementwise" if accelerator else "none"),
        scan_unroll=scan_unroll,
        platform=device.platform,
    )


def in_words(model: models.ModelConfig, device: Any) -> str:
    """How the model computes on a device, in a line; all that "auto" has come to."""
    line = f"{model.dtype} towers, {model.attention} attention, remat {model.remat}"
    old = device.platform != "cpu" and not has_bfloat16(device)
    return line + (f"; {device.device_kind} has no bfloat16" if old else "")


def _or(value: str, best: str) -> str:
    return best if value == AUTO else value
