# SPDX-License-Identifier: Apache-2.0
"""What both engines of `benchmarks.train_step` are given: sizes, weights, one batch.

    python -m benchmarks.train_step_case FOLDER --model vit-b-16 --batch 16

writes `sizes.json`, `weights.safetensors` under the official names and `batch.npz`. The
captions are masked here, once, so that both engines see the same words.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common

SIZES, WEIGHTS, BATCH = "sizes.json", "weights.safetensors", "batch.npz"
CLASSES, IRR_LAYERS, MASK_RATE = 11003, 4, 0.15
LR = 1e-5
TERMS = ("a_sdm", "id", "mlm", "efa")


def add_case(parser: argparse.ArgumentParser) -> None:
    """Add the flags that determine what is computed."""
    parser.add_argument("--model", default="vit-b-16", help="a preset's name")
    parser.add_argument("--batch", type=int, help="default: 16, 256 on a GPU")
    parser.add_argument("--layers", type=int, help="of each tower, for a quick look")
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--irr-layers", type=int, default=IRR_LAYERS)


def case_flags(options: argparse.Namespace) -> list[str]:
    """Return the same flags again, for a child."""
    names = ("model", "batch", "layers", "classes", "irr_layers")
    return common.flags(options, *names)


def read_sizes(folder: Path) -> dict:
    """Return the fields of a ModelConfig that determine its parameters."""
    sizes = json.loads((folder / SIZES).read_text())
    return sizes | {"image_size": tuple(sizes["image_size"])}


def read_batch(folder: Path, rows: int | None = None) -> dict[str, np.ndarray]:
    """Return images, tokens, persons, and the masked captions with their labels.

    Args:
        folder: The case's.
        rows: The first rows alone.
    """
    with np.load(folder / BATCH, allow_pickle=False) as file:
        return {name: values[:rows] for name, values in file.items()}


def make_batch(sizes: dict, count: int) -> dict[str, np.ndarray]:
    """Return pictures of noise, each around its own colour, and random captions."""
    rng = np.random.default_rng(0)
    shape = (count, *sizes["image_size"], 3)
    colour = rng.integers(0, 192, (count, 1, 1, 3))
    length, vocabulary = sizes["context_length"], sizes["vocab_size"]
    # A model without a classifier knows any number of persons.
    persons = np.arange(count) // 2 % (sizes["classes"] or count)
    tokens = np.zeros((count, length), np.int32)
    for row in tokens:
        words = rng.integers(15, min(46, length - 1))
        inside = rng.integers(1, vocabulary - 3, words)
        row[: words + 2] = [vocabulary - 2, *inside, vocabulary - 1]
    return {
        "image": (colour + rng.integers(0, 64, shape)).astype(np.uint8),
        "tokens": tokens,
        # Two pictures of each.
        "person": persons.astype(np.int32),
        "pair": np.arange(count, dtype=np.int32),
        "image_id": np.arange(count, dtype=np.int32),
    }


def make_config(model: str, layers: int | None, **changes: Any) -> Any:
    """Return a preset's ModelConfig with changes; `layers` cuts both towers."""
    from fmfa_jax import models

    towers = ("image_layers", "text_layers") if layers else ()
    changes |= dict.fromkeys(towers, layers)
    return dataclasses.replace(models.PRESETS[model], **changes)


def train(step: Any, state: Any, batch: Any, count: int) -> tuple[list, dict]:
    """Train on one batch again and again.

    Returns:
        What each of 1 + `count` steps measured, and the times of all but the first.
    """
    found, held = [], {"state": state}

    def one() -> Any:
        """Run a step and keep its report."""
        held["state"], measured = step(held["state"], batch)
        found.append(measured)
        return held["state"], measured

    common.seconds(one)
    taken = common.timed(one, count)
    return found, taken


def step_key():
    """Return the key that every step uses here, instead of one of its own."""
    import jax

    return jax.random.key(0)


def write(folder: Path, options: argparse.Namespace) -> None:
    """Draw weights and batch."""
    import jax

    from fmfa_jax import models, weights
    from fmfa_jax.methods.views import mask_tokens

    heads = {"classes": options.classes, "irr_layers": options.irr_layers}
    config = make_config(options.model, options.layers, **heads)
    sizes = dataclasses.asdict(config)
    batch = make_batch(sizes, options.batch)
    # Split as in the training step of methods/fmfa.py: images, text.
    key = jax.random.split(step_key())[1]
    tokens, mask_id = jax.numpy.asarray(batch["tokens"]), config.vocab_size - 3
    masked, labels = mask_tokens(key, tokens, rate=MASK_RATE, mask_id=mask_id)
    # How it computes is each engine's matter, and all have CLIP's own activation.
    for name in (*vars(models.config.PORTABLE), "activation"):
        del sizes[name]
    (folder / SIZES).write_text(json.dumps(sizes))
    np.savez(folder / BATCH, masked=masked, labels=labels, **batch)
    weights.export_official(folder / WEIGHTS, models.init_params(config, 0))


def main() -> None:
    """Write one case."""
    parser = common.parser(__doc__)
    parser.add_argument("folder", type=Path)
    add_case(parser)
    parser.set_defaults(batch=16)
    options = parser.parse_args()
    write(options.folder, options)
    common.answer({"folder": str(options.folder)})


if __name__ == "__main__":
    main()
