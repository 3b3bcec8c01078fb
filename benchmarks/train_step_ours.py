# SPDX-License-Identifier: Apache-2.0
"""Our engine of `benchmarks.train_step`, in a process of its own.

python -m benchmarks.train_step_ours FOLDER steps --dtype float32 --remat full
"""

import argparse
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
    WEIGHTS,
    read_batch,
    read_sizes,
    step_key,
)
from benchmarks.unrolled import xla_flops
from fmfa_jax import models, weights
from fmfa_jax.machines.flops import count_flops, peak_flops
from fmfa_jax.machines.mesh import make_mesh, to_devices
from fmfa_jax.methods import fmfa as supervised
from fmfa_jax.training.gradients import Loss, loss_and_gradient
from fmfa_jax.training.optimizer import make_optimizer
from fmfa_jax.training.step import make_state, make_step

TERMS = ("a_sdm", "id", "mlm", "efa")


def make_loss(config: models.ModelConfig) -> Loss:
    """FMFA's official loss; views that change nothing, and the same masks each step."""
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
    """The step, compiled or as an earlier process has compiled it; state and batch."""
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
    """Leave the program in JAX's cache; seconds of it all."""
    start = time.perf_counter()
    ready(folder, config)
    return {"seconds": time.perf_counter() - start}


def steps(folder: Path, config: models.ModelConfig, count: int) -> dict[str, Any]:
    """Train: seconds of each step after the first, and what the first one measured."""
    step, state, batch = ready(folder, config)
    answer: dict[str, Any] = {}
    state, measured = step(state, batch)
    first = {k: float(v) for k, v in jax.device_get(measured.scalars).items()}
    answer["first"] = {k: first[k] for k in (*TERMS, "total", "grad_norm")}
    held = {"state": state}

    def one() -> Any:
        held["state"], measured = step(held["state"], batch)
        return held["state"], measured

    taken = common.timed(one, count)
    return answer | taken | {"device_gb": _device_peak()}


def features(folder: Path, config: models.ModelConfig) -> dict[str, Any]:
    """Global features of the batch."""
    params, batch = _params(folder, config), read_batch(folder)
    image = models.image_features(config, params, batch["image"])
    text = models.text_features(config, params, batch["masked"])
    out = folder / f"ours-{config.dtype}.npz"
    np.savez(out, image=np.asarray(image), text=np.asarray(text))
    return {"features": str(out)}


def flops(folder: Path, config: models.ModelConfig) -> dict[str, Any]:
    """FLOPs of value and gradient: by program, and by XLA with all loops unrolled."""
    config = dataclasses.replace(config, remat="none")
    gradient = loss_and_gradient(make_loss(config), chunks=1, mesh=make_mesh())

    def step(params: Any, batch: Any) -> Any:
        return gradient(params, batch, step_key(), None)

    arguments = models.param_shapes(config), _inputs(folder)
    return {
        "flops": count_flops(step, *arguments),
        "xla_flops": xla_flops(step, *arguments),
        "peak_flops": peak_flops(jax.devices()[0]),
        "device": jax.devices()[0].device_kind,
    }


def _inputs(folder: Path) -> dict[str, np.ndarray]:
    batch = read_batch(folder)
    return {name: batch[name] for name in ("image", "tokens", "person")}


def _params(folder: Path, config: models.ModelConfig) -> Any:
    return weights.load_params(folder / WEIGHTS, config).params


def _device_peak() -> float | None:
    """Most memory of the accelerator that was in use, in GB."""
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else peak / 1e9


_TASKS = {"compile": compile_step, "steps": steps, "features": features, "flops": flops}


def main() -> None:
    """Answer one question."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
