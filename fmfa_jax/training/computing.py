# SPDX-License-Identifier: Apache-2.0
"""How a model computes on a device, where the config leaves it to the device."""

from typing import Any

from fmfa_jax import models
from fmfa_jax.machines.devices import has_bfloat16, has_cudnn_attention

AUTO = "auto"
UNROLLED = 12
"""Blocks in one iteration on an NVIDIA card: a loop copies what its gradient wants into
arrays of all layers and back, an eighth of a step of ViT-B/16 on an H200. Compiling
takes half as long again."""


def computing(
    device: Any,
    *,
    dtype: str = AUTO,
    precision: str = "highest",
    products: str = AUTO,
    attention: str = AUTO,
    remat: str = AUTO,
    scan_unroll: int = 0,
    sharded: bool = False,
) -> models.Compute:
    """What `models.Compute` says, with "auto" and 0 replaced by what suits a device.

    Args:
        device: A jax.Device, or what has its attributes.
        dtype: These and the following: see `models.Compute`.
        precision: See there.
        products: See there.
        attention: See there.
        remat: See there.
        scan_unroll: See there.
        sharded: Whether parameters are gathered for each block (mesh.fsdp): outside of
            a loop they might be kept until the gradient.

    Raises:
        ValueError: cuDNN's attention is asked for where it is not to be had.
    """
    accelerator = device.platform != "cpu"
    dtype = _or(dtype, "bfloat16" if has_bfloat16(device) else "float32")
    nvidia = has_cudnn_attention(device)
    fused = nvidia and dtype == "bfloat16"
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
        scan_unroll=scan_unroll or (UNROLLED if nvidia and not sharded else 1),
        platform=device.platform,
    )


def in_words(model: models.ModelConfig, device: Any) -> str:
    """How the model computes on a device, in a line; all that "auto" has come to."""
    line = f"{model.dtype} towers, {model.attention} attention, remat {model.remat}"
    old = device.platform != "cpu" and not has_bfloat16(device)
    return line + (f"; {device.device_kind} has no bfloat16" if old else "")


def _or(value: str, best: str) -> str:
    return best if value == AUTO else value
