# SPDX-License-Identifier: Apache-2.0
"""Our engine of `benchmarks.train_step`, in its own process.

python -m benchmarks.train_step_ours FOLDER steps --dtype float32 --remat full
"""

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
from fmfa_jax.methods.fmfa import FMFAMethod, Masking, Recipe
from fmfa_jax.methods.views import Augmentation
from fmfa_jax.training.gradients import loss_and_gradient
from fmfa_jax.training.optimizer import AdamOptions, make_optimizer
from fmfa_jax.training.step import make_state, make_step


class FixedMasks(FMFAMethod):
    """FMFA that hides the same words in every step."""

    def encode(self, params: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
        """Encode with the key that the peer's masks were made with."""
        return super().encode(params, batch, step_key())


def make_method(config: models.ModelConfig) -> FixedMasks:
    """Return official FMFA with unchanged views and fixed masks."""
    recipe = Recipe(
        losses=dict.fromkeys(TERMS, 1.0),
        mask=Masking(rate=MASK_RATE),
        augment=Augmentation(flip=0.0, pad=0, erase=0.0),
    )
    return FixedMasks(config, recipe)


def ready(folder: Path, config: models.ModelConfig) -> tuple[Any, Any, Any]:
    """Return the compiled step (from JAX's cache if there), the state and the batch."""
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(lambda step: LR, AdamOptions())
    method = make_method(config)
    state = make_state(_params(folder, config), optimizer, mesh, method)
    step = make_step(
        method,
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
    method = make_method(config.portable)
    gradient = loss_and_gradient(method, chunks=1, mesh=make_mesh())

    def step(params: Any, batch: Any) -> Any:
        return gradient(params, batch, step_key(), {})

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
