# SPDX-License-Identifier: Apache-2.0
r"""Cross-entropy over the vocabulary, value and gradient: in blocks versus all at once.

    python -m benchmarks.vocabulary         # 64 captions with room for 28 masked words
    python -m benchmarks.vocabulary --dtype bfloat16 --filled 28
    python -m benchmarks.vocabulary --batch 16 --repeats 1

The masked words of each caption come first, up to `--filled` in the fullest one; the
other rows have no label. "All at once" keeps the scores of all rows, in JAX and in
PyTorch. Each candidate runs in its own process, and the processes take turns.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import common, in_blocks

ROOM, WIDTH, WORDS = 28, 512, 49408


def main() -> None:
    """Print one table for each number of filled positions."""
    parser = common.parser(__doc__)
    parser.add_argument("--filled", type=int, nargs="*", default=[10])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--words", type=int, default=WORDS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only", choices=in_blocks.TITLES, help="one candidate, as JSON"
    )
    options = parser.parse_args()
    for filled in options.filled:
        sizes = (options.batch, filled, options.words)
        if options.only:
            common.answer(measure(options.only, sizes, options.dtype))
            continue
        flags = common.flags(options, "batch", "words", "dtype")
        found = common.children(
            "benchmarks.vocabulary",
            in_blocks.TITLES,
            *("--filled", str(filled), *flags),
            repeats=options.repeats,
        )
        title = f"Vocabulary, {options.batch} captions, {filled} of {ROOM} rows filled"
        title += f", {options.words} words, {options.dtype}"
        in_blocks.compare(title, found, options.dtype)


def measure(name: str, sizes: tuple[int, int, int], dtype: str) -> dict[str, float]:
    """Return what a candidate takes; see `in_blocks.measure`."""
    make = _torch if name == "torch" else _jax
    return in_blocks.measure(make(name, dtype, *inputs(*sizes)))


def inputs(batch: int, filled: int, words: int) -> tuple[np.ndarray, ...]:
    """Return rows, the vocabulary's layer, and labels, 0 where a row has none."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((batch, ROOM, WIDTH), np.float32)
    kernel = rng.standard_normal((WIDTH, words), np.float32) / WIDTH**0.5
    bias = rng.standard_normal(words, np.float32)
    labels = rng.integers(1, words, (batch, ROOM), np.int32)
    counts = rng.integers(1, filled + 1, (batch, 1))
    counts[0] = filled
    return hidden, kernel, bias, np.where(np.arange(ROOM) < counts, labels, 0)


def _jax(name: str, dtype: str, *arrays: np.ndarray) -> Callable[[], Any]:
    import jax

    from fmfa_jax.losses import labelled_mean, token_losses, word_losses
    from fmfa_jax.models.layers import project

    def score(head: Any, rows: Any) -> Any:
        return project(rows, head[0]) + head[1]

    def loss(hidden: Any, kernel: Any, bias: Any, labels: Any) -> Any:
        """Return the loss of a vocabulary head, dense or in blocks."""
        head, hidden = (kernel, bias), hidden.astype(dtype)
        if name == "dense":
            return labelled_mean(token_losses(score(head, hidden), labels), labels)
        losses = word_losses(score, head, hidden, labels, backend=jax.default_backend())
        return labelled_mean(losses, labels)

    inside = [jax.device_put(array) for array in arrays]
    both = jax.value_and_grad(loss, argnums=(0, 1, 2))
    run = jax.jit(both).lower(*inside).compile()
    return lambda: run(*inside)


def _torch(name: str, dtype: str, *arrays: np.ndarray) -> Callable[[], Any]:
    import torch
    from torch.nn import functional

    del name
    device = common.torch_device()
    *weights, labels = (torch.from_numpy(array).to(device) for array in arrays)
    labels = labels.long().flatten()
    for each in weights:
        each.requires_grad_()
    cast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def call() -> Any:
        """Run torch's head, forwards and backwards."""
        hidden, kernel, bias = weights
        with cast:
            logits = functional.linear(hidden.flatten(0, 1), kernel.T, bias)
        value = functional.cross_entropy(logits.float(), labels, ignore_index=0)
        return value.detach(), torch.autograd.grad(value, weights)

    return call


if __name__ == "__main__":
    main()
