# SPDX-License-Identifier: Apache-2.0
"""What a method is: all that training and evaluation ask of one.

A method is a frozen dataclass, in one file or folder of this room. Its loss is cut in
two where rows begin to meet, so that a batch can be encoded in chunks without changing
a number: `encode` sees each row alone, `compare` the GLOBAL batch. Neither knows how
many devices there are; XLA inserts the collectives.
"""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from data_pipeline.hints import unknown
from data_pipeline.records import Split
from fmfa_jax import models
from fmfa_jax.options import Between, check

Batch = Mapping[str, jax.Array]
HostBatch = Mapping[str, np.ndarray]
Scalars = dict[str, Any]  # arrays on the device, or fetched from it
State = dict[str, Any]
"""{"params", "opt_state", "step", "skipped"} and the method's own entries: a plain
pytree."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Measured:
    """What `compare` reports beside the total.

    Attributes:
        scalars: Name -> float32 scalar for the log.
        update: What `Method.advance` needs to know of the step; None: nothing.
        records: Arrays for `Method.summarize` on the host, such as mined rows; None
            where there are none.
    """

    scalars: Scalars
    update: Any = None
    records: Any = None


@dataclass(frozen=True)
class Task:
    """What a method may know of the run it is built for.

    Attributes:
        model: Sizes of the model that is trained.
        mesh: Devices of all processes.
        split: Training pairs.
        dataset: Name of the data set, for messages.
        batch_size: Pairs in a global batch.
        steps_per_epoch: Steps in an epoch.
        seed: The run's; the randomness of step s is fold_in(seed, s).
    """

    model: models.ModelConfig
    mesh: Mesh
    split: Split
    dataset: str
    batch_size: int
    steps_per_epoch: int
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """An epoch that is about to begin.

    Attributes:
        number: 0 for the first.
        batches: Opens a pass over its batches, on the devices and in the very order in
            which the steps of the epoch will meet them.
    """

    number: int
    batches: Callable[[], Iterator[Batch]]


@dataclass(frozen=True)
class Method(abc.ABC):
    """Base of all methods. What is not abstract may be left as it is.

    Attributes:
        model: Sizes of the model; its heads are those that `sized` asked for.
    """

    model: models.ModelConfig

    Recipe: ClassVar[type]
    """Dataclass of the config's sections that the method reads (see `options`)."""
    batch_keys: ClassVar[tuple[str, ...]]
    """Entries of a loader's batch that the compiled step may see."""

    @classmethod
    def check(
        cls, recipe: Any, *, sampler: str, caption_buckets: Sequence[int]
    ) -> None:
        """Refuse settings of the data that this recipe cannot learn from.

        Raises:
            ValueError: Names the keys that do not go together.
        """
        del recipe, sampler, caption_buckets

    @classmethod
    def sized(cls, recipe: Any, model: models.ModelConfig) -> models.ModelConfig:
        """The model with the heads that this recipe trains; by default none."""
        return models.towers_only(model)

    @classmethod
    def at_test(cls, model: models.ModelConfig) -> models.ModelConfig:
        """The trained model with the heads that features need."""
        return models.without_training_heads(model)

    @staticmethod
    def image_features(model: models.ModelConfig, params: Any, images: Array) -> Array:
        """Features [b,d] that pictures are found by, under the sizes of `at_test`."""
        return models.image_features(model, params, images)

    @staticmethod
    def text_features(model: models.ModelConfig, params: Any, ids: Array) -> Array:
        """Features [b,d] that captions find pictures by."""
        return models.text_features(model, params, ids)

    @staticmethod
    def feature_parts(model: models.ModelConfig) -> Mapping[str, slice]:
        """Columns of the features that are measured apart as well, by name."""
        return models.feature_parts(model)

    @classmethod
    @abc.abstractmethod
    def for_task(cls, recipe: Any, task: Task) -> "Method":
        """Build the method for a run.

        Raises:
            ValueError: The training pairs are not what the method learns from.
        """

    @abc.abstractmethod
    def encode(self, params: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
        """Compute each row from the same row of the batch alone.

        Args:
            params: Parameters, a nested dict.
            batch: The entries `batch_keys`, and "row", the global row numbers.
            key: Randomness of this step.

        Returns:
            (features, notes), two pytrees of arrays [b, ..]. Gradients flow through
            features; notes are constants.
        """

    @abc.abstractmethod
    def compare(
        self, features: Any, notes: Any, batch: Batch, state: State
    ) -> tuple[Float[Array, ""], Measured]:
        """Compute the loss of the global batch.

        Args:
            features: What `encode` gave.
            notes: What `encode` gave.
            batch: See `encode`.
            state: The train state before the step. Gradients flow into "params", which
                a head needs that mixes rows, as batch norm does; the rest is constant.
        """

    def initial_state(self) -> State:
        """The method's own entries of a fresh train state, laid out on the mesh."""
        return {}

    def advance(self, state: State, update: Any, taken: Bool[Array, ""]) -> State:
        """Entries of the train state that change otherwise than by a gradient.

        Those are the method's own, or "params" with running statistics. It is called
        once the gradient is known, because a step that is not finite must leave every
        entry as it was.

        Args:
            state: The train state, its parameters after the step, all else before it.
            update: What `compare` put into `Measured.update`.
            taken: False where the step is skipped.
        """
        del state, update, taken
        return {}

    def before_epoch(self, state: State, epoch: Epoch) -> State:
        """Change the method's own entries of the state before an epoch's first step.

        All processes call it alike. It must be a function of state and epoch alone:
        a run that was killed meanwhile calls it again.
        """
        del epoch
        return state

    def parameter_group(self, path: str) -> tuple[float, bool] | None:
        """A parameter's learning-rate factor, and whether it decays.

        Args:
            path: Such as "irr/blocks/ln_1/bias".

        Returns:
            None to leave the parameter to config.optimizer.groups.
        """
        del path
        return None

    def check_batch(self, batch: HostBatch) -> None:
        """Refuse a batch that the step cannot take.

        Raises:
            ValueError: Says what is wrong with it.
        """
        del batch

    def summarize(self, records: Sequence[Any]) -> dict[str, float]:
        """Figures for the log from the records of all steps since the last line."""
        del records
        return {}

    def warning(self, scalars: Mapping[str, float]) -> str | None:
        """What a user should be told after the first step, or None."""
        del scalars
        return None


def with_rows(batch: Batch) -> dict[str, jax.Array]:
    """The batch with the number of each of its rows."""
    size = jax.tree.leaves(batch)[0].shape[0]
    return {**batch, "row": jnp.arange(size, dtype=jnp.int32)}


def need_persons(task: Task, name: str) -> None:
    """Refuse training pairs without a person id, which a method cannot do without.

    Raises:
        ValueError: Says how many there are, and what to do.
    """
    unknown = int(np.sum(task.split.pair_labels < 0))
    if unknown:
        raise ValueError(
            f"{name} learns from person ids, but {unknown} of the "
            f"{len(task.split.pairs)} training pairs of {task.dataset} have none; "
            "give them ids, or train from pairs alone with the preset :weak or :clip"
        )


def weighted(
    terms: Mapping[str, Callable[[], Array]], weights: Mapping[str, float]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Compute the terms that have a weight, and their weighted sum.

    Args:
        terms: Name -> what computes it.
        weights: Name -> weight.

    Returns:
        The sum, and name -> float32 value without its weight.
    """
    values = {name: term() for name, term in terms.items() if weights.get(name)}
    total = sum(
        (weights[name] * value for name, value in values.items()), jnp.float32(0)
    )
    return total, values


def check_weights(weights: Mapping[str, Any], terms: Sequence[str]) -> None:
    """Check the section `losses` of a config.

    Raises:
        ValueError: A term that does not exist, a weight that is not finite or below 0,
            or no weight at all.
    """
    for name, weight in weights.items():
        if name not in terms:
            raise ValueError(unknown("config.losses", name, terms))
        check(f"config.losses.{name}", Annotated[float, Between(0)], weight)
    if not any(weights.values()):
        raise ValueError("all weights in config.losses are 0; wanted at least one loss")
