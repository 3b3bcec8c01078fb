# SPDX-License-Identifier: Apache-2.0
"""From a config to the objects of a run: the place that knows the config's keys."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from data_pipeline.datasets import open_dataset
from data_pipeline.order import steps_per_epoch
from data_pipeline.records import PersonDataset, Split
from data_pipeline.tokenizer import Tokenizer
from fmfa_jax import losses, models
from fmfa_jax.methods import weak as association
from fmfa_jax.methods.fmfa import Augmentation, Recipe
from fmfa_jax.methods.weak.method import WeakRecipe
from fmfa_jax.training.optimizer import make_optimizer, make_schedule

# The keys that decide what a run computes; a checkpoint made under other values is
# refused. The rest (paths, logging, evaluation) may change between two sessions.
IDENTITY = ("seed", "method", "model", "losses", "loss", "mask", "augment")
IDENTITY += ("optimizer", "schedule", "weak")
IDENTITY_KEYS = ("data.name", "data.sampler", "data.per_identity", "data.tokenizer")
IDENTITY_KEYS += ("data.caption_buckets", "train.batch_size", "train.epochs")
IDENTITY_KEYS += ("init.path",)

CHOICES = {
    "method": ("fmfa", "weak"),
    "data.sampler": ("shuffle", "identity"),
    "data.cache": ("none", "memory", "disk"),
    "model.preset": tuple(models.PRESETS),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.remat": models.config.REMATS,
    "loss.a_sdm_weight": ("none", "official", "paper", "plus"),
    "loss.efa_rule": ("official", "plus"),
    "loss.mlm_rule": ("official", "plus"),
    "loss.itc_positives": ("pair", "person"),
    "weak.rows": ("all", "batch"),
    "weak.exclude": ("rank0", "self"),
    "weak.targets": ("owner", "union"),
    "weak.same_image": ("unknown", "linked"),
    "weak.itc_reduction": ("mean", "sum"),
    "weak.memory_dtype": ("float32", "bfloat16"),
    "weak.mask_first": ("always", "never"),
    "optimizer.groups": ("uniform", "irra"),
    "schedule.every": ("epoch", "step"),
    "eval.split": ("auto", "val", "test"),
}


def value_at(config: ConfigDict, key: str) -> Any:
    """The value under a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def flat(config: ConfigDict) -> dict[str, Any]:
    """Dotted key -> value, for every leaf of a config."""
    rows: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            rows |= {f"{key}.{k}": v for k, v in flat(value).items()}
        else:
            rows[key] = list(value) if isinstance(value, tuple) else value
    return rows


def identity(config: ConfigDict) -> dict[str, Any]:
    """What a run computes: the keys whose change makes it another run."""
    rows = flat(config)
    return {
        k: v
        for k, v in rows.items()
        if k.split(".")[0] in IDENTITY or k in IDENTITY_KEYS
    }


def validate(config: ConfigDict) -> None:
    """Refuse values that no part knows, before anything is read or compiled.

    Raises:
        ValueError: names the key, the value, the near ones and all that are possible.
    """
    for key, known in CHOICES.items():
        value = value_at(config, key)
        if value not in known:
            raise ValueError(unknown(f"config.{key}", str(value), known))
    if not any(config.losses.values()):
        raise ValueError("all weights in config.losses are 0; wanted at least one loss")
    for name in ("efa", "mlm") if config.data.caption_buckets else ():
        if config.losses.get(name) and config.loss[f"{name}_rule"] == "official":
            raise ValueError(
                f"data.caption_buckets={config.data.caption_buckets} cuts padding off, "
                f"which the released {name} counts: wanted loss.{name}_rule=plus or no "
                "buckets"
            )


def unknown(what: str, got: str, known: Iterable[str]) -> str:
    """An error text: what was given, what is near, what is possible."""
    known = list(known)
    near = difflib.get_close_matches(got, known, n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"{what}={got!r} is not known{hint} Possible: {', '.join(known)}"


def dataset(config: ConfigDict) -> PersonDataset:
    """The data set, opened."""
    return open_dataset(
        config.data.name, config.data.root, **config.data.options.to_dict()
    )


def model_config(
    config: ConfigDict, tokenizer: Tokenizer, *, classes: int
) -> models.ModelConfig:
    """Sizes of the model, from the preset, the config's changes and the data.

    The heads exist only where a loss needs them: without a weight on id or mlm there is
    nothing to train or to store.
    """
    c = config.model
    preset = models.PRESETS[c.preset]
    dtype = c.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return dataclasses.replace(
        preset,
        image_size=tuple(c.image_size),
        stride=c.stride or preset.stride,
        context_length=c.context_length,
        vocab_size=tokenizer.vocab_size,
        classes=classes if config.losses.get("id") else 0,
        irr_layers=c.irr_layers if config.losses.get("mlm") else 0,
        dtype=dtype,
        remat=c.remat,
    )


def recipe(config: ConfigDict) -> Recipe:
    """What FMFA's step computes."""
    c = config.loss
    return Recipe(
        weights=config.losses.to_dict(),
        options=losses.Options(
            scale=c.scale,
            a_sdm_weight=c.a_sdm_weight,
            a_sdm_alpha=c.a_sdm_alpha,
            efa_rule=c.efa_rule,
            itc_positives=c.itc_positives,
        ),
        mask_rate=config.mask.rate,
        mlm_rule=c.mlm_rule,
        mask_all_captions=config.mask.all_captions,
        augmentation=Augmentation(**config.augment.to_dict()),
    )


def weak_recipe(config: ConfigDict, *, first_epoch: int) -> WeakRecipe:
    """What the weak method's step computes."""
    options = config.weak.to_dict()
    own = {name: options.pop(name) for name in ("rate", "memory_dtype", "mask_first")}
    return WeakRecipe(
        weights=config.losses.to_dict(),
        first_epoch=first_epoch,
        options=association.WeakOptions(scale=config.loss.scale, **options),
        mask_rate=config.mask.rate,
        augmentation=Augmentation(**config.augment.to_dict()),
        **own,
    )


def optimizer(
    config: ConfigDict, steps_in_epoch: int
) -> tuple[optax.GradientTransformation, Callable[[Any], Any]]:
    """The optimiser and the learning-rate schedule that it follows."""
    options = config.optimizer.to_dict()
    schedule = make_schedule(
        options.pop("lr"),
        epochs=config.train.epochs,
        steps_per_epoch=steps_in_epoch,
        **config.schedule.to_dict(),
    )
    return make_optimizer(schedule, **options), schedule


def epoch_length(config: ConfigDict, split: Split) -> int:
    """Steps in an epoch."""
    return steps_per_epoch(size=len(split.pairs), batch_size=config.train.batch_size)


def chosen_on(config: ConfigDict, data: PersonDataset) -> str:
    """The split that the best checkpoint is chosen on: val where there is one."""
    if config.eval.split != "auto":
        return config.eval.split
    return "test" if data.val is None else "val"
