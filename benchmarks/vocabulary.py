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

from benchmarks import common

ROOM, WIDTH, WORDS = 28, 512, 49408
_CALLS = 3
_TITLES = {
    "ours": "ours, in blocks",
    "dense": "JAX, all at once",
    "torch": "torch, all at once",
}


def main() -> None:
    """Print one table for each number of filled positions."""
    parser = common.parser(__doc__)
    parser.add_argument("--filled", type=int, nargs="*", default=[10])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--words", type=int, default=WORDS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=_TITLES, help="one candidate, as JSON")
    options = parser.parse_args()
    for filled in options.filled:
        sizes = (options.batch, filled, options.words)
        if options.only:
            common.answer(measure(options.only, sizes, options.dtype))
            continue
        flags = common.flags(options, "batch", "words", "dtype")
        found = common.children(
            "benchmarks.vocabulary",
            _TITLES,
            *("--filled", str(filled), *flags),
            repeats=options.repeats,
        )
        _compare(sizes, options.dtype, found)


def measure(name: str, sizes: tuple[int, int, int], dtype: str) -> dict[str, float]:
    """Return a call's seconds, value and gradient norm, and the memory before it."""
    call = (_torch if name == "torch" else _jax)(name, dtype, *inputs(*sizes))
    base = common.peak_gb()
    value, gradients = call()
    norm = float(np.sqrt(sum(np.vdot(g, g) for g in gradients)))
    numbers = {"base_gb": base, "value": value, "norm": norm}
    return numbers | common.timed(call, _CALLS)


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
        head, hidden = (kernel, bias), hidden.astype(dtype)
        if name == "dense":
            return labelled_mean(token_losses(score(head, hidden), labels), labels)
        return labelled_mean(word_losses(score, head, hidden, labels), labels)

    inside = [jax.device_put(array) for array in arrays]
    both = jax.value_and_grad(loss, argnums=(0, 1, 2))
    run = jax.jit(both).lower(*inside).compile()

    def call() -> Any:
        value, gradients = run(*inside)
        return float(value), [np.asarray(g) for g in gradients]

    return call


def _torch(name: str, dtype: str, *arrays: np.ndarray) -> Callable[[], Any]:
    import torch
    from torch.nn import functional

    del name
    *weights, labels = (torch.from_numpy(array) for array in arrays)
    labels = labels.long().flatten()
    for each in weights:
        each.requires_grad_()
    cast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")

    def call() -> Any:
        hidden, kernel, bias = weights
        with cast:
            logits = functional.linear(hidden.flatten(0, 1), kernel.T, bias)
        value = functional.cross_entropy(logits.float(), labels, ignore_index=0)
        gradients = torch.autograd.grad(value, weights)
        return value.item(), [g.numpy() for g in gradients]

    return call


def _compare(
    sizes: tuple[int, int, int], dtype: str, found: dict[str, dict[str, float]]
) -> None:
    mine = found["ours"]
    lines = [
        (
            _TITLES[name],
            f"{values['seconds']:.2f}",
            f"{values['seconds'] / mine['seconds']:.1f}",
            f"{values['cpu_seconds']:.2f}",
            f"{values['peak_gb'] - values['base_gb']:.2f}",
            f"{abs(values['value'] / mine['value'] - 1):.0e}",
            f"{abs(values['norm'] / mine['norm'] - 1):.0e}",
        )
        for name, values in found.items()
    ]
    batch, filled, words = sizes
    common.show(
        f"Vocabulary, {batch} captions, {filled} of {ROOM} rows filled, {words} words,"
        f" {dtype}",
        ("", "seconds", "x ours", "CPU s", "added GB", "value", "gradient"),
        lines,
        notes=[
            "Added: the process's peak less what it held before the first call, with"
            " the gradients. Value, gradient: relative distance of the value and of the"
            " gradient's norm to ours."
        ],
    )


if __name__ == "__main__":
    main()
