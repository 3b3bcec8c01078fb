# SPDX-License-Identifier: Apache-2.0
"""A method's whole training step, built as `training.loop` does, without a config.

Nothing here needs TensorFlow, ml_collections or a tokenizer, so that it runs where only
JAX, Flax, Optax and Orbax are installed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.train_step_case import CLASSES, IRR_LAYERS, LR, TERMS, make_config
from data_pipeline.records import Pair, Picture, Split
from fmfa_jax import models
from fmfa_jax.machines.mesh import (
    batch_sharding,
    check_batch_size,
    make_mesh,
    state_shardings,
    to_devices,
)
from fmfa_jax.methods import METHODS, Method, Task, fmfa, rde, weak
from fmfa_jax.methods.rde.recipe import TERMS as RDE_TERMS
from fmfa_jax.methods.weak.recipe import TERMS as WEAK_TERMS
from fmfa_jax.training.computing import computing
from fmfa_jax.training.optimizer import AdamOptions, make_optimizer
from fmfa_jax.training.step import make_state, make_step

RECIPES: dict[str, Any] = {
    "fmfa": fmfa.Recipe(losses=dict.fromkeys(TERMS, 1.0)),
    "weak": weak.Recipe(losses=dict.fromkeys(WEAK_TERMS, 1.0)),
    "rde": rde.Recipe(losses=dict.fromkeys(RDE_TERMS, 1.0)),
}
"""What each method computes here: all losses of its released code."""
PAIRS = 68_126
"""Training pairs of CUHK-PEDES, which size the weak method's memory."""


def sized(
    model: str,
    *,
    layers: int | None = None,
    device: Any = None,
    sizes: Mapping[str, Any] | None = None,
    **choices: Any,
) -> models.ModelConfig:
    """Return a preset that computes as training does on a device.

    Args:
        model: The preset's name.
        layers: Blocks of each tower instead of the preset's.
        device: Default: JAX's first.
        sizes: Other fields of the ModelConfig.
        **choices: Fields of `models.Compute` that the device does not choose.
    """
    heads = {"classes": CLASSES, "irr_layers": layers or IRR_LAYERS}
    how = computing(device or jax.devices()[0], **choices)
    return make_config(model, layers, **heads | vars(how) | dict(sizes or {}))


@dataclass(frozen=True)
class WholeStep:
    """Loss, gradient and optimiser of a method on a mesh."""

    method: Method
    mesh: Mesh

    @property
    def optimizer(self) -> Any:
        """FMFA's optimizer at a constant rate."""
        own = self.method.parameter_group
        return make_optimizer(lambda step: LR, AdamOptions(), own_group=own)

    def state(self, params: Any = None) -> Any:
        """Return the state of step 0, of weights that are drawn unless given."""
        params = params or models.init_params(self.method.model, 0)
        return make_state(params, self.optimizer, self.mesh, self.method)

    def state_shapes(self) -> Any:
        """Return the shapes of `state`, with their places; nothing is allocated."""
        shapes = jax.eval_shape(
            lambda params: make_state(params, self.optimizer, self.mesh, self.method),
            models.param_shapes(self.method.model),
        )
        return _placed(shapes, state_shardings(shapes, self.mesh))

    def batch(self, rows: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Bring what the step needs of a batch to the devices."""
        return to_devices({key: rows[key] for key in self.method.batch_keys}, self.mesh)

    def batch_shapes(self, count: int, length: int | None = None) -> dict[str, Any]:
        """Return the shapes of a batch of `count` pairs, captions cut to `length`."""
        model = self.method.model
        known = {
            "image": ((count, *model.image_size, 3), np.uint8),
            "tokens": ((count, length or model.context_length), np.int32),
        }
        shapes = {
            key: jax.ShapeDtypeStruct(*known.get(key, ((count,), np.int32)))
            for key in self.method.batch_keys
        }
        return _placed(shapes, dict.fromkeys(shapes, batch_sharding(self.mesh)))

    def function(self, state: Any) -> Callable[..., Any]:
        """Return the step (state, batch) -> (state, Measured), not compiled yet."""
        return make_step(
            self.method,
            self.optimizer,
            state,
            mesh=self.mesh,
            seed=0,
            schedule=lambda step: LR,
        )

    def lower(self, count: int, length: int | None = None) -> Any:
        """Lower the step from shapes alone."""
        state = self.state_shapes()
        return self.function(state).lower(state, self.batch_shapes(count, length))


def build(
    model: models.ModelConfig,
    *,
    batch: int,
    method: str = "fmfa",
    recipe: Any = None,
    mesh: Mesh | None = None,
    pairs: int = PAIRS,
) -> WholeStep:
    """Return a method's step.

    Args:
        model: Sizes, with all heads; the method keeps those that it trains.
        batch: Pairs in a global batch.
        method: One of `RECIPES`.
        recipe: Instead of the method's in `RECIPES`.
        mesh: Default: JAX's first device.
        pairs: Training pairs.
    """
    learns, recipe = METHODS[method], recipe or RECIPES[method]
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    check_batch_size(batch, mesh)
    pictures = tuple(Picture("", "", i % max(1, model.classes)) for i in range(pairs))
    split = Split("train", pictures, tuple(Pair(i, "") for i in range(pairs)))
    task = Task(learns.sized(recipe, model), mesh, split, "drawn", batch, 1)
    return WholeStep(learns.for_task(recipe, task), mesh)


def report_gb(program: Any) -> dict[str, float]:
    """Return what a compiled program plans for on a device, in 10^9 bytes.

    "arguments" is the state and the batch; "program" is all that it holds, with the
    memory that results take over from arguments counted once.
    """
    report = program.memory_analysis()
    sizes = {
        "arguments": report.argument_size_in_bytes,
        "temporary": report.temp_size_in_bytes,
    }
    fresh = report.output_size_in_bytes - report.alias_size_in_bytes
    sizes["program"] = sum(sizes.values()) + fresh
    return {name: size / 1e9 for name, size in sizes.items()}


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        shardings,
    )
