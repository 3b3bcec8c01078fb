# SPDX-License-Identifier: Apache-2.0
"""The card itself: what it is, and its two ceilings."""

import os
import platform
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import torch

from benchmarks import common
from benchmarks.accelerator.run import Run
from fmfa_jax.machines.flops import peak_flops

DTYPE = jnp.bfloat16


PRODUCT = "product of bfloat16 in JAX, TFLOP/s"


def ceilings(run: Run) -> None:
    """What one product of matrices and one copy reach, in JAX and in torch."""
    side, size = run.sizes.side, run.sizes.copied
    for name, value in _installed().items():
        run.append({"case": name, "value": value})
    products, copies = {}, {}
    products["JAX"], copies["JAX"] = _in_jax(side, size)
    products["torch"], copies["torch"] = _in_torch(side, size)
    units = {
        PRODUCT.replace("JAX", "{}"): (products, 2 * side**3 / 1e12),
        f"copy of {size >> 20} MiB in {{}}, GB/s": (copies, 2 * size / 1e9),
    }
    for title, (calls, work) in units.items():
        for name, call in calls.items():
            run.measure(
                title.format(name),
                lambda call=call, work=work: {"value": work / _seconds(call)},
            )


def _seconds(call: Any) -> float:
    return common.alternate({"": call}, repeats=5, least=0.1)[""]


def _installed() -> dict[str, Any]:
    device = jax.devices()[0]
    peak = peak_flops(device)
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "torch")
    (card,) = common.nvidia("driver_version", "memory.total")[:1] or [{}]
    return {
        "device": device.device_kind,
        "driver": card.get("driver_version"),
        "memory, MiB": card.get("memory.total"),
        "dense bfloat16 of the data sheet, TFLOP/s": peak and peak / 1e12,
        "cuDNN of torch": torch.backends.cudnn.version(),
        "CUDA of torch": torch.version.cuda,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "cores": len(os.sched_getaffinity(0)),
    }


def _in_jax(side: int, size: int) -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.normal(key, (side, side), DTYPE) for key in keys)
    source = jnp.ones(size // 4, jnp.float32)
    product, copy = jax.jit(jnp.matmul), jax.jit(jnp.negative)
    return lambda: product(left, right), lambda: copy(source)


def _in_torch(side: int, size: int) -> tuple[Any, Any]:
    place = {"device": common.torch_device()}
    left, right = (torch.randn(side, side, **place).bfloat16() for _ in "lr")
    source = torch.ones(size // 4, **place)
    return lambda: left @ right, lambda: torch.neg(source)
