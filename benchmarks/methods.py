# SPDX-License-Identifier: Apache-2.0
r"""The whole training step of each method, and RDE's pass over the training pairs.

    python -m benchmarks.methods                         # ViT-B/16, batch 16
    python -m benchmarks.methods --batch 128 --dtype bfloat16

A step is loss, gradient and Adam. The pass (confident consensus division, before each
epoch) measures the loss of every pair, brings it to the host and fits the mixtures. All
take turns in one process, on the same batch.
"""

from collections.abc import Callable
from typing import Any

from benchmarks import common
from benchmarks.train_step_case import add_case, make_batch
from benchmarks.whole_step import RECIPES, WholeStep, build, sized
from fmfa_jax.methods import Epoch
from fmfa_jax.models.config import DTYPES, REMATS

PASS = "rde, the pass"
_BATCHES = 4
"""Of the epoch that the pass goes over."""


def main() -> None:
    """Print the table."""
    parser = common.parser(__doc__)
    add_case(parser)
    parser.set_defaults(batch=16)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--remat", choices=REMATS, default="full")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    batch = options.batch
    model = sized(
        options.model, layers=options.layers, dtype=options.dtype, remat=options.remat
    )
    calls: dict[str, Callable[[], Any]] = {}
    for method in RECIPES:
        pairs = _BATCHES * batch
        whole = build(model, batch=batch, method=method, pairs=pairs)
        rows = whole.batch(make_batch(vars(whole.method.model), batch))
        calls[method] = _training(whole, rows)
        if method == "rde":
            calls[PASS] = _dividing(whole, rows)
    taken = common.alternate(calls, repeats=options.repeats)
    taken[PASS] /= _BATCHES
    lines = [
        [
            name,
            common.cell(1e3 * seconds),
            common.cell(batch / seconds),
            f"{taken['fmfa'] / seconds:.2f}",
            f"{taken['rde'] / seconds:.2f}",
        ]
        for name, seconds in taken.items()
    ]
    common.show(
        f"Steps of the methods, {options.model}, batch {batch}, {options.dtype}, "
        f"remat {options.remat}",
        ("", "ms a batch", "pairs/s", "x fmfa", "x rde"),
        lines,
    )


def _training(whole: WholeStep, rows: Any) -> Callable[[], Any]:
    held = {"state": whole.state()}
    step = whole.function(held["state"])

    def call() -> Any:
        held["state"], measured = step(held["state"], rows)
        return held["state"], measured

    return call


def _dividing(whole: WholeStep, rows: Any) -> Callable[[], Any]:
    state = whole.state()
    epoch = Epoch(0, lambda: iter([rows] * _BATCHES))
    return lambda: whole.method.before_epoch(state, epoch)


if __name__ == "__main__":
    main()
