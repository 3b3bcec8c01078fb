# SPDX-License-Identifier: Apache-2.0
"""Config values: key and value -> message."""

import functools
from pathlib import Path
from typing import Any

from configs import cuhk
from fmfa_jax.options import mistyped
from fmfa_jax.training import settings
from tests.bad_inputs.table import Reader

NAN, INF = float("nan"), float("inf")


@functools.cache
def preset(name: str) -> Any:
    return cuhk.get_config(name)


def read(_: Path, given: tuple[str, str, Any]) -> object:
    name, key, value = given
    config = preset(name).copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict({key: value})
    return settings.read(config)


# What lies outside of a key's range.
RANGES = {
    "seed": (-1, 2**32, 2**70),
    "data.people": (0.0, -1.0, 1.5, NAN),
    "data.per_identity": (0, -3),
    "data.caption_buckets": ((1,), (-5, 20)),
    "data.noise": (-0.1, 1.0, NAN),
    "data.noise_seed": (-1, 2**32),
    "model.image_size": ((0, 32), (64, 5000), (64,), (64, 32, 3), ()),
    "model.stride": (-1,),
    "model.context_length": (0, 2, 10**9),
    "model.irr_layers": (-1, 10**9),
    "model.scan_unroll": (-1,),
    "losses.efa": (NAN, -1.0, INF),
    "losses.id": (-1.0,),
    "loss.scale": (0.0, -50.0, NAN, INF),
    "loss.a_sdm_alpha": (-1.0, NAN),
    "mask.rate": (2.0, -1.0, NAN),
    "augment.flip": (5.0, -0.1, NAN),
    "augment.pad": (-1, 10**6),
    "augment.erase": (-0.1, 1.1, NAN),
    "optimizer.lr": (0.0, -1e-3, NAN, INF, 1e38),
    "optimizer.b1": (-0.1, 1.0, 2.0, NAN),
    "optimizer.b2": (-1.0, 1.0, NAN),
    "optimizer.eps": (0.0, -1.0, NAN),
    "optimizer.weight_decay": (-1.0, NAN, INF),
    "optimizer.head_factor": (-1.0, 1e30),
    "optimizer.bias_factor": (-1.0, NAN),
    "optimizer.clip_norm": (-1.0, NAN),
    "schedule.warmup_epochs": (-1.0, NAN, INF),
    "schedule.warmup_factor": (-0.1, 1.1),
    "schedule.end_factor": (-0.1, INF),
    "train.batch_size": (0, -8),
    "train.chunks": (0, -1),
    "train.epochs": (0, -1),
    "train.stop_step": (-5,),
    "train.max_skipped": (-1,),
    "eval.every_epochs": (-1,),
    "eval.batch_size": (0, 10**9),
    "eval.pictures": (-1,),
    "checkpoint.every_epochs": (-1,),
    "checkpoint.every_steps": (-1,),
    "checkpoint.keep": (0, -1),
    "log.every_steps": (0, -1),
    "mesh.fsdp": (0, -1),
    "run.watchdog_seconds": (-1, NAN, INF),
}
WEAK_RANGES = {
    "weak.threshold": (NAN, 5.0, -2.0),
    "weak.strength": (-1000.0, NAN),
    "weak.links": (0, 10**6),
    "weak.rate": (2.0, -0.1, NAN),
    "losses.local": (-1.0, NAN),
    "losses.itc": (None, "1"),
}
RDE_RANGES = {
    "rde.tau": (0.0, 2.0, NAN),
    "rde.margin": (-0.1, 5.0),
    "rde.width": (1, 10**9),
    "rde.ratio": (0.0, 1.5, NAN),
    "rde.lr": (0.0, -1.0, INF),
    "rde.mask": (-0.1, 1.1),
    "rde.replace": (-0.1, NAN),
    "rde.remove": (1.5,),
    "losses.bge": (None, [1.0]),
}
# Values of another kind, as a config file of one's own can hold.
KINDS = {
    "train.batch_size": ("64", None, (64, "x"), 64.5),
    "train.epochs": (1.5,),
    "optimizer.lr": ("1e-5", None, (1e-5,)),
    "data.noise": ([0.1],),
    "losses.sdm": (None, "1", [1.0]),
    "model.image_size": ("384x128", (384, None), (384, 128.5)),
    "seed": ("0", None),
    "augment.flip": (None, "half"),
    "data.name": (5, None),
    "data.root": (5, ["data"]),
    "init.path": (None,),
    "init.drop_classifier": ("no", None),
    "log.tensorboard": (1,),
    "log.wandb": (1, None),
    "log.mlflow": (True,),
    "run.deterministic": ("yes",),
}
WORDS = {
    "method": ("fmf", "method='fmf' is not known; did you mean fmfa"),
    "data.sampler": ("identiy", "sampler='identiy' is not known; did you mean ident"),
    "data.cache": ("disc", "cache='disc' is not known; did you mean disk?"),
    "model.preset": ("vit", "preset='vit' is not known"),
    "model.dtype": ("float16", "dtype='float16' is not known"),
    "model.precision": ("hi", "precision='hi' is not known; did you mean high"),
    "model.products": ("x", "products='x' is not known"),
    "model.attention": ("flash", "attention='flash' is not known"),
    "model.remat": ("half", "remat='half' is not known"),
    "init.activation": ("relu", "activation='relu' is not known"),
    "init.text_positions": ("keeps", "'keeps' is not known; did you mean keep"),
    "loss.a_sdm_weight": ("offical", "a_sdm_weight='offical' is not known"),
    "loss.efa_rule": ("x", "efa_rule='x' is not known"),
    "loss.mlm_rule": ("x", "mlm_rule='x' is not known"),
    "loss.itc_positives": ("all", "itc_positives='all' is not known"),
    "optimizer.groups": ("ira", "groups='ira' is not known; did you mean irra?"),
    "schedule.every": ("month", "every='month' is not known"),
    "eval.split": ("train", "split='train' is not known"),
}
TOGETHER = [
    (("plus", "data.caption_buckets", (32, 16)), "wanted increasing lengths"),
    (("plus", "data.caption_buckets", (16, 77)), "lengths from 2 to 76"),
    (("official", "data.root", "nfs://b/x"), "config.data.root: wanted a path on a"),
    (("official", "data.cache_dir", "gs://b/x"), "data.cache_dir: wanted a path on a"),
    (("official", "data.tokenizer", "~nobodyhere/t"), "no home folder of ~nobodyhere"),
    (
        ("official", "init.path", "ftps://b/m.pt"),
        "config.init.path: wanted a path on a",
    ),
    (("official", "run.compilation_cache", "file:///x"), "leave out file://"),
]


def rows(name: str, ranges: dict[str, tuple[Any, ...]]) -> list[tuple[Any, str]]:
    return [
        ((name, key, value), f"config.{key}: wanted")
        for key, values in ranges.items()
        for value in values
    ]


def keys(_: Path, argument: str) -> None:
    raise ValueError(mistyped([argument], settings.flat(preset("official").to_dict())))


KEYS = [
    ("--config.train.batch=8", "config.train.batch: there is no such key; did you"),
    ("--config.lr=1", "did you mean optimizer.lr"),
    ("--config.optimizer.learning_rate=1", "config.optimizer.learning_rate: there is"),
    ("--config.batch_size=8", "did you mean eval.batch_size or train.batch_size"),
    ("--config['train']['batch']=8", "config.train.batch: there is no such key"),
    ("--config.zzz=8", "--help lists all keys"),
]

READERS = [
    Reader(
        "configs",
        read,
        ValueError,
        [
            *rows("official", RANGES),
            *rows("weak", WEAK_RANGES),
            *rows("rde", RDE_RANGES),
            *rows("official", KINDS),
            *((("official", key, word), said) for key, (word, said) in WORDS.items()),
            *TOGETHER,
        ],
    ),
    Reader("config keys", keys, ValueError, KEYS),
]
