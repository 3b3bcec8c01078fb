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

from benchmarks import common, in_blocks

# Words, patches of 384 x 128 pixels, and the groups that both are compared with.
ROWS, GROUPS, WIDTH = (77, 192), 77, 512


def main() -> None:
    """Print one table for each number of rows."""
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=list(ROWS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only", choices=in_blocks.TITLES, help="one candidate, as JSON"
    )
    options = parser.parse_args()
    for rows in options.rows:
        if options.only:
            common.answer(measure(options.only, options.batch, rows, options.width))
            continue
        flags = ["--rows", str(rows), *common.flags(options, "batch", "width")]
        found = common.children(
            "benchmarks.efa", in_blocks.TITLES, *flags, repeats=options.repeats
        )
        title = (
            f"EFA, {rows} x {GROUPS} rows of {options.batch} x {options.batch} pairs"
        )
        in_blocks.compare(f"{title}, width {options.width}", found, "float32")


def measure(name: str, batch: int, rows: int, width: int) -> dict[str, float]:
    """Return what a candidate takes; see `in_blocks.measure`."""
    make = _torch if name == "torch" else _jax
    return in_blocks.measure(make(name, *inputs(batch, rows, width)))


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
        return best_cosines(rows, groups, everywhere, backend=jax.default_backend())

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


if __name__ == "__main__":
    main()
