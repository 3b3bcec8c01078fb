# SPDX-License-Identifier: Apache-2.0
r"""EFA's comparison of all pairs, value and gradient: in blocks versus all at once.

    python -m benchmarks.efa                     # 77 x 77 and 192 x 77, batch 64
    python -m benchmarks.efa --batch 16 --repeats 1

For each row of picture i (its words, then its patches) this is the largest cosine with
a group of picture j, for all i and j, and the gradient with respect to rows and groups.
"All at once" keeps an array [b, b, rows, groups], in JAX and in PyTorch, as the
released code does. Each candidate runs in its own process, and the processes take
turns.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import common

# Words, patches of 384 x 128 pixels, and the groups that both are compared with.
ROWS, GROUPS, WIDTH = (77, 192), 77, 512
_CALLS = 3
_TITLES = {
    "ours": "ours, in blocks",
    "dense": "JAX, all at once",
    "torch": "torch, all at once",
}


def main() -> None:
    """Print one table for each number of rows."""
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=list(ROWS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=_TITLES, help="one candidate, as JSON")
    options = parser.parse_args()
    for rows in options.rows:
        if options.only:
            common.answer(measure(options.only, options.batch, rows, options.width))
            continue
        flags = ["--rows", str(rows), *common.flags(options, "batch", "width")]
        found = common.children(
            "benchmarks.efa", _TITLES, *flags, repeats=options.repeats
        )
        _compare(options.batch, rows, options.width, found)


def measure(name: str, batch: int, rows: int, width: int) -> dict[str, float]:
    """Return a call's seconds, value and gradient norm, and the memory before it."""
    arrays = inputs(batch, rows, width)
    call = (_torch if name == "torch" else _jax)(name, *arrays)
    base = common.peak_gb()
    value, gradients = call()
    numbers = {"base_gb": base, "value": float(value)}
    numbers["norm"] = float(sum((g * g).sum() for g in gradients)) ** 0.5
    return numbers | common.timed(call, _CALLS)


def inputs(batch: int, rows: int, width: int) -> tuple[np.ndarray, ...]:
    """Return rows and groups that resemble each other, and a weight for each score."""
    rng = np.random.default_rng(0)
    person = rng.standard_normal((batch, 1, width), np.float32)
    shapes = (batch, rows, width), (batch, GROUPS, width)
    tokens = [person + 2 * rng.standard_normal(s, np.float32) for s in shapes]
    return *tokens, rng.standard_normal((batch, batch), np.float32)


def _jax(name: str, *arrays: np.ndarray) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    from fmfa_jax.losses.arithmetic import EXACT, unit
    from fmfa_jax.losses.comparison import best_cosines

    def dense(rows: Any, groups: Any) -> Any:
        rows, groups = unit(rows), unit(groups)
        return jnp.einsum("ixd,jgd->xijg", rows, groups, precision=EXACT).max(axis=-1)

    def blocks(rows: Any, groups: Any) -> Any:
        everywhere = jnp.ones(groups.shape[:2], bool)
        return best_cosines(rows, groups, everywhere)

    best = dense if name == "dense" else blocks

    def score(rows: Any, groups: Any, weight: Any) -> Any:
        return jnp.sum(weight * jax.nn.logsumexp(best(rows, groups), axis=0))

    inside = [jax.device_put(array) for array in arrays]
    run = jax.jit(jax.value_and_grad(score, argnums=(0, 1))).lower(*inside).compile()
    return lambda: run(*inside)


def _torch(name: str, *arrays: np.ndarray) -> Callable[[], Any]:
    import torch

    from benchmarks.peers.losses import pair_scores

    del name
    device = common.torch_device()
    rows, groups, weight = (torch.from_numpy(array).to(device) for array in arrays)
    rows.requires_grad_()
    groups.requires_grad_()

    def call() -> Any:
        value = (weight * pair_scores(rows, groups)).sum()
        return value.detach(), torch.autograd.grad(value, (rows, groups))

    return call


def _compare(
    batch: int, rows: int, width: int, found: dict[str, dict[str, float]]
) -> None:
    mine = found["ours"]
    lines = [
        (
            _TITLES[name],
            f"{values['seconds']:.2f}",
            f"{values['seconds'] / mine['seconds']:.1f}",
            f"{values['cpu_seconds']:.2f}",
            f"{values['peak_gb'] - values['base_gb']:.2f}",
            f"{values['peak_gb']:.2f}",
            f"{abs(values['value'] / mine['value'] - 1):.0e}",
            f"{abs(values['norm'] / mine['norm'] - 1):.0e}",
        )
        for name, values in found.items()
    ]
    header = (
        "",
        "seconds",
        "x ours",
        "CPU s",
        "added GB",
        "peak GB",
        "value",
        "gradient",
    )
    common.show(
        f"EFA, {rows} x {GROUPS} rows of {batch} x {batch} pairs, width {width}",
        header,
        lines,
        notes=[
            "Added: the process's peak less what it held before the first call. Value,"
            " gradient: relative distance of the value and of the gradient's norm to"
            " ours. All in float32."
        ],
    )


if __name__ == "__main__":
    main()
