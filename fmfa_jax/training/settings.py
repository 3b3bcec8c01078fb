# SPDX-License-Identifier: Apache-2.0
"""A config, opened: each section becomes one object, and all of them are checked.

This is the door behind which no config travels. What the sections `losses`, `loss`,
`mask`, `augment` and those of single methods mean lies with the methods, `optimizer`
and `schedule` in optimizer.py.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from ml_collections import ConfigDict

from data_pipeline.captions import check_buckets
from data_pipeline.command import found, local
from data_pipeline.loader import CACHES
from data_pipeline.order import SAMPLERS
from fmfa_jax import models
from fmfa_jax.methods import METHODS, Method
from fmfa_jax.options import (
    Above,
    Between,
    OneOf,
    Options,
    flat,
    section_names,
    sections,
)
from fmfa_jax.training.computing import AUTO, computing
from fmfa_jax.training.optimizer import AdamOptions, ScheduleOptions
from fmfa_jax.weights import weights_path
from fmfa_jax.weights.positions import LINES

# With the sections of the method's recipe, the keys that decide what a run computes; a
# checkpoint made under other values is refused. The rest (paths, logging, evaluation)
# may change between two sessions; `Session` adds what some paths lead to. The weak
# method's section is in checkpoints of all methods since the first of them.
IDENTITY = ("seed", "method", "model", "optimizer", "schedule", "weak")
IDENTITY_KEYS = ("data.name", "data.sampler", "data.per_identity")
IDENTITY_KEYS += ("data.caption_buckets", "train.batch_size", "train.epochs")
# Only where there is noise: the other checkpoints are older than it.
NOISE_KEYS = ("data.noise", "data.noise_seed")

# A run may go on where memory and kernels are others.
NOT_IDENTITY = frozenset(
    f"model.{name}" for name in ("products", "attention", "remat", "scan_unroll")
)
WEIGHTS = ("init", "path")
SOURCES = (("data", "root"), ("data", "tokenizer"), WEIGHTS)
"""Keys of what is read, which may lie in an object store; weights on the Hub, too."""
PATHS = (("data", "cache_dir"), ("run", "compilation_cache"))
"""Keys of folders that are on a mounted disk."""
SPLITS = ("auto", "val", "test", "none")
Positive = Annotated[int, Between(1)]
NotNegative = Annotated[int, Between(0)]
LARGEST_SEED = 2**32 - 1  # the generators take 32 bits


@dataclass(frozen=True, kw_only=True)
class Data(Options, section="data"):
    """What is learned from, and how it is read; see `data_pipeline`."""

    name: str
    root: str
    options: dict[str, Any]
    people: Annotated[float, Above(0, 1)]
    tokenizer: str
    sampler: Annotated[str, OneOf(SAMPLERS)]
    per_identity: Positive
    caption_buckets: Annotated[tuple[int, ...], Between(2)]
    noise: Annotated[int | float, Between(0, 0.99)]
    noise_seed: Annotated[int, Between(0, LARGEST_SEED)]
    cache: Annotated[str, OneOf(CACHES)]
    cache_dir: str


@dataclass(frozen=True, kw_only=True)
class Model(Options, section="model"):
    """Changes to a preset of `models.PRESETS`; `computing` knows what "auto" is."""

    preset: Annotated[str, OneOf(tuple(models.PRESETS))]
    image_size: Annotated[tuple[int, ...], Between(1, 4096)]
    stride: NotNegative
    context_length: Annotated[int, Between(3, 4096)]
    irr_layers: Annotated[int, Between(0, 64)]
    dtype: Annotated[str, OneOf((AUTO, *models.config.DTYPES))]
    precision: Annotated[str, OneOf(models.config.PRECISIONS)]
    products: Annotated[str, OneOf((AUTO, *models.config.PRODUCTS))]
    attention: Annotated[str, OneOf((AUTO, *models.config.ATTENTIONS))]
    remat: Annotated[str, OneOf((AUTO, *models.config.REMATS))]
    scan_unroll: NotNegative

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.image_size) != 2:
            raise ValueError(
                "config.model.image_size: wanted (height, width), got "
                f"{self.image_size}"
            )

    def sized(
        self,
        device: Any,
        *,
        vocab_size: int,
        classes: int,
        activation: str = "quick_gelu",
        sharded: bool = False,
    ) -> models.ModelConfig:
        """The model with all heads, for a device, a vocabulary and identities.

        Args:
            device: See `computing`.
            vocab_size: Of the tokenizer.
            classes: Identities.
            activation: See `models.ModelConfig`.
            sharded: See `computing`.
        """
        preset = models.PRESETS[self.preset]
        return replace(
            preset,
            image_size=self.image_size,
            stride=self.stride or preset.stride,
            context_length=self.context_length,
            vocab_size=vocab_size,
            classes=classes,
            irr_layers=self.irr_layers,
            activation=activation,
            **asdict(self.computing(device, sharded=sharded)),
        )

    def computing(self, device: Any, *, sharded: bool = False) -> models.Compute:
        """How the model computes on a device: as the config says, or as suits it."""
        names = ("dtype", "precision", "products", "attention", "remat", "scan_unroll")
        asked = {name: getattr(self, name) for name in names}
        return computing(device, **asked, sharded=sharded)


@dataclass(frozen=True, kw_only=True)
class Init(Options, section="init"):
    """Weights to start from, and the activation that they were trained with."""

    path: str
    activation: Annotated[str, OneOf((AUTO, *models.config.ACTIVATIONS))]
    drop_classifier: bool
    text_positions: Annotated[str, OneOf(LINES)]


@dataclass(frozen=True, kw_only=True)
class Train(Options, section="train"):
    """How much is trained."""

    batch_size: Positive  # checked against the devices
    chunks: Positive  # likewise
    epochs: Positive
    stop_step: NotNegative
    max_skipped: NotNegative


@dataclass(frozen=True, kw_only=True)
class Eval(Options, section="eval"):
    """What is measured, and when."""

    every_epochs: NotNegative
    batch_size: Annotated[int, Between(1, 2**16)]  # rows are filled up to it
    split: Annotated[str, OneOf(SPLITS)]
    pictures: NotNegative


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Options, section="checkpoint"):
    """When the training state is saved."""

    every_epochs: NotNegative
    every_steps: NotNegative
    keep: Positive
    max_failed: NotNegative


@dataclass(frozen=True, kw_only=True)
class Log(Options, section="log"):
    """What is written down while training."""

    every_steps: Positive
    tensorboard: bool
    wandb: str
    mlflow: str


@dataclass(frozen=True, kw_only=True)
class Mesh(Options, section="mesh"):
    """How all devices share the work."""

    fsdp: Positive  # checked against the devices


@dataclass(frozen=True, kw_only=True)
class Process(Options, section="run"):
    """How this process runs."""

    watchdog_seconds: Annotated[int | float, Between(0)]
    compilation_cache: str
    deterministic: bool  # main.py sets XLA's flags for it

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deterministic and not self.compilation_cache:
            raise ValueError(
                "config.run.deterministic=True: wanted compiled programs to be kept, "
                "since GPUs time kernels to choose among them anew in every compile; "
                'got config.run.compilation_cache="", take auto or a folder'
            )


@dataclass(frozen=True)
class Settings:
    """All that a run is told, a section an attribute."""

    data: Data
    model: Model
    init: Init
    optimizer: AdamOptions
    schedule: ScheduleOptions
    train: Train
    eval: Eval
    checkpoint: Checkpoint
    log: Log
    mesh: Mesh
    run: Process
    name: str
    seed: int
    method: str
    recipe: Any
    """The method's `Recipe`."""
    flat: Mapping[str, Any]
    """Dotted key -> value, for config.json."""

    @property
    def learns(self) -> type[Method]:
        """The class of the method."""
        return METHODS[self.method]

    @property
    def losses(self) -> list[str]:
        """The losses that are computed."""
        weights = {k: v for k, v in self.flat.items() if k.startswith("losses.")}
        return [key.removeprefix("losses.") for key, v in weights.items() if v]

    def identity(self) -> dict[str, Any]:
        """What the run computes: the keys whose change makes it another run.

        Checkpoints from before there was `data.people` were of all people.
        """
        decisive = {*IDENTITY, *section_names(type(self.recipe))}
        keys = IDENTITY_KEYS + (NOISE_KEYS if self.data.noise else ())
        keys += ("data.people",) * (self.data.people < 1)
        return {
            key: value
            for key, value in self.flat.items()
            if (key.split(".")[0] in decisive or key in keys)
            and key not in NOT_IDENTITY
        }


def check_data(settings: Settings) -> None:
    """Refuse batches that could not be made, before any data is read.

    Raises:
        ValueError: Names the keys that do not go together.
    """
    data, size = settings.data, settings.train.batch_size
    if data.sampler == "identity" and size % data.per_identity:
        raise ValueError(
            f"config.data.per_identity={data.per_identity}: wanted a divisor of "
            f"config.train.batch_size={size} for the identity sampler"
        )
    check_buckets(tuple(data.caption_buckets), settings.model.context_length)


def read(config: ConfigDict) -> Settings:
    """Check a config and take it apart, before any data is read.

    Raises:
        ValueError: Names the key, the value, and what it may be.
    """
    values = config.to_dict()
    for section, key in SOURCES + PATHS:
        given, take = values[section][key], local if (section, key) in PATHS else found
        if (section, key) == WEIGHTS:
            take = weights_path
        if isinstance(given, str):
            values[section][key] = str(take(given, what=f"config.{section}.{key}"))
    OneOf(tuple(METHODS)).check("config.method", values["method"])
    Between(0, LARGEST_SEED).check("config.seed", values["seed"])
    method = METHODS[values["method"]]
    values |= {"recipe": sections(method.Recipe, values), "flat": flat(values)}
    settings = sections(Settings, values)
    check_data(settings)
    method.check(
        settings.recipe,
        sampler=settings.data.sampler,
        caption_buckets=settings.data.caption_buckets,
    )
    return settings
