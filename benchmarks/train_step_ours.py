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
    MASK_RATE,
    TERMS,
    WEIGHTS,
    read_batch,
    read_sizes,
    step_key,
    train,
)
from benchmarks.whole_step import WholeStep
from fmfa_jax import models, weights
from fmfa_jax.machines.flops import count_flops, peak_flops
from fmfa_jax.machines.mesh import make_mesh
from fmfa_jax.methods.fmfa import FMFAMethod, Masking, Recipe
from fmfa_jax.methods.views import Augmentation
from fmfa_jax.training.computing import computing
from fmfa_jax.training.gradients import loss_and_gradient


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
    step = WholeStep(make_method(config), make_mesh(devices=jax.devices()[:1]))
    state, batch = step.state(_params(folder, config)), step.batch(read_batch(folder))
    return step.function(state).lower(state, batch).compile(), state, batch


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
    return {"first": first} | taken


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
    method, batch = make_method(config.portable), read_batch(folder)
    gradient = loss_and_gradient(method, chunks=1, mesh=make_mesh())

    def step(params: Any, batch: Any) -> Any:
        return gradient(params, batch, step_key(), {})

    inputs = {name: batch[name] for name in method.batch_keys}
    return {
        "flops": count_flops(step, models.param_shapes(config), inputs),
        "peak_flops": peak_flops(jax.devices()[0]),
    }


def _params(folder: Path, config: models.ModelConfig) -> Any:
    return weights.load_params(folder / WEIGHTS, config).params


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
    how = computing(jax.devices()[0], dtype=options.dtype, remat=options.remat)
    config = models.ModelConfig(**read_sizes(options.folder), **vars(how))
    extra = (options.steps,) if options.task == "steps" else ()
    common.answer(_TASKS[options.task](options.folder, config, *extra))


if __name__ == "__main__":
    main()
