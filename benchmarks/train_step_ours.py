# SPDX-License-Identifier: Apache-2.0
"""Our engine of `benchmarks.train_step`, in its own process.

python -m benchmarks.train_step_ours FOLDER steps --dtype float32 --remat full
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import common
from benchmarks.train_step_case import (
    LR,
    MASK_RATE,
    TERMS,
    WEIGHTS,
    read_batch,
    read_sizes,
    step_key,
    train,
)
from fmfa_jax import models, weights
from fmfa_jax.machines.flops import count_flops, peak_flops
from fmfa_jax.machines.mesh import make_mesh, to_devices
from fmfa_jax.methods import fmfa as supervised
from fmfa_jax.training.gradients import Loss, loss_and_gradient
from fmfa_jax.training.optimizer import make_optimizer
from fmfa_jax.training.step import make_state, make_step


def make_loss(config: models.ModelConfig) -> Loss:
    """Return FMFA's official loss with unchanged views and fixed masks."""
    recipe = supervised.Recipe(
        weights=dict.fromkeys(TERMS, 1.0),
        mask_rate=MASK_RATE,
        augmentation=supervised.Augmentation(flip=0.0, pad=0, erase=0.0),
    )
    loss = supervised.make_loss(config, recipe)
    return dataclasses.replace(
        loss, encode=lambda params, batch, key: loss.encode(params, batch, step_key())
    )


def ready(folder: Path, config: models.ModelConfig) -> tuple[Any, Any, Any]:
    """Return the compiled step (from JAX's cache if there), the state and the batch."""
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(lambda step: LR)
    state = make_state(_params(folder, config), optimizer, mesh)
    step = make_step(
        make_loss(config),
        optimizer,
        state,
        mesh=mesh,
        seed=0,
        schedule=lambda step: LR,
    )
    batch = to_devices(_inputs(folder), mesh)
    return step.lower(state, batch).compile(), state, batch


def compile_step(folder: Path, config: models.ModelConfig) -> dict[str, Any]:
    """Leave the program in JAX's cache; return how long that took."""
    start = time.perf_counter()
    ready(folder, config)
    return {"seconds": time.perf_counter() - start}


def steps(folder: Path, config: models.ModelConfig, count: int) -> dict[str, Any]:
    """Train; return the seconds of later steps and what the first one measured."""
    (measured, *_), taken = train(*ready(folder, config), count)
    scalars = jax.device_get(measured.scalars)
    first = {name: float(scalars[name]) for name in (*TERMS, "total", "grad_norm")}
    return {"first": first, "device_gb": _device_peak()} | taken


def features(folder: Path, config: models.ModelConfig) -> dict[str, Any]:
    """Write the global features of the batch and return the file."""
    params, batch = _params(folder, config), read_batch(folder)
    image = models.image_features(config, params, batch["image"])
    text = models.text_features(config, params, batch["masked"])
    out = folder / f"ours-{config.dtype}.npz"
    np.savez(out, image=np.asarray(image), text=np.asarray(text))
    return {"features": str(out)}


def flops(folder: Path, config: models.ModelConfig) -> dict[str, Any]:
    """Return the FLOPs of value and gradient, and the device's peak per second."""
    config = dataclasses.replace(config, remat="none")
    gradient = loss_and_gradient(make_loss(config), chunks=1, mesh=make_mesh())

    def step(params: Any, batch: Any) -> Any:
        return gradient(params, batch, step_key(), None)

    arguments = models.param_shapes(config), _inputs(folder)
    return {
        "flops": count_flops(step, *arguments),
        "peak_flops": peak_flops(jax.devices()[0]),
    }


def _inputs(folder: Path) -> dict[str, np.ndarray]:
    batch = read_batch(folder)
    return {name: batch[name] for name in ("image", "tokens", "person")}


def _params(folder: Path, config: models.ModelConfig) -> Any:
    return weights.load_params(folder / WEIGHTS, config).params


def _device_peak() -> float | None:
    """Return the peak memory in use on the accelerator, in GB."""
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else peak / 1e9


_TASKS = {"compile": compile_step, "steps": steps, "features": features, "flops": flops}


def main() -> None:
    """Carry out one task and pass the result to the parent."""
    parser = common.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", choices=_TASKS)
    parser.add_argument("--dtype", choices=models.config.DTYPES, default="float32")
    parser.add_argument("--remat", choices=models.config.REMATS, default="none")
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    config = models.ModelConfig(
        **read_sizes(options.folder), dtype=options.dtype, remat=options.remat
    )
    extra = (options.steps,) if options.task == "steps" else ()
    common.answer(_TASKS[options.task](options.folder, config, *extra))


if __name__ == "__main__":
    main()
