# SPDX-License-Identifier: Apache-2.0
r"""The same global batch on 1, 2, 4 and 8 devices: pairs per second, equal losses.

    python -m benchmarks.scaling                # on a CPU: simulated devices
    python -m benchmarks.scaling --model vit-b-16 --batch 256 --dtype bfloat16

If there are accelerators, 1, 2, 4, .. of them are used. On a CPU the devices are
simulated: they share the same cores, so nothing can become faster, and the table shows
the cost of spreading a batch. Each count runs in its own process, and the processes
take turns.
"""

import argparse
from typing import Any

from benchmarks import common

DEVICES = (1, 2, 4, 8)


def main() -> None:
    """Print the table."""
    parser = common.parser(__doc__)
    parser.add_argument("--model", default="demo", help="a preset's name")
    parser.add_argument("--batch", type=int, default=64, help="over all devices")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--layers", type=int, help="of each tower, for a quick look")
    parser.add_argument("--devices", type=int, nargs="*", default=list(DEVICES))
    parser.add_argument("--steps", type=int, default=10, help="timed, in each process")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each")
    parser.add_argument("--only", type=int, help="one number of devices, as JSON")
    options = parser.parse_args()
    if options.only:
        common.answer(measure(options))
        return
    present = common.accelerators()
    counts = [n for n in options.devices if n <= (present or n)]
    answers = common.take_turns(
        counts,
        lambda count: _ask(count, options, simulated=not present),
        repeats=options.repeats,
    )
    _compare(options, answers, simulated=not present)


def _ask(count: int, options: argparse.Namespace, *, simulated: bool) -> dict:
    flags = common.flags(options, "model", "batch", "dtype", "steps", "layers")
    variables = common.simulated(count) if simulated else {}
    only = ("--only", str(count))
    return common.child("benchmarks.scaling", *flags, *only, environment=variables)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train from the same weights on the same batch; return seconds and losses."""
    import jax

    from benchmarks.train_step_case import make_batch, train
    from benchmarks.whole_step import build, sized
    from fmfa_jax.machines.mesh import make_mesh

    config = sized(
        options.model,
        layers=options.layers,
        dtype=options.dtype,
        sizes={"classes": options.batch},
    )
    mesh = make_mesh(devices=jax.devices()[: options.only])
    whole = build(config, batch=options.batch, mesh=mesh, pairs=options.batch)
    state = whole.state()
    batch = whole.batch(make_batch(vars(config), options.batch))
    found, taken = train(whole.function(state), state, batch, options.steps)
    losses = [float(measured.scalars["total"]) for measured in found]
    return taken | {"losses": losses}


def _compare(
    options: argparse.Namespace, answers: dict[int, list[dict]], *, simulated: bool
) -> None:
    seconds = {n: common.medians(runs)["seconds"] for n, runs in answers.items()}
    first, *_ = seconds
    reference = answers[first][0]["losses"]
    rows = []
    for count, taken in seconds.items():
        losses = answers[count][0]["losses"]
        gaps = [abs(a / b - 1) for a, b in zip(losses, reference, strict=True)]
        # Simulated devices share the same cores: ideally they keep the speed of one.
        ideal = 1 if simulated else count / first
        rows.append(
            (
                f"{count} device{'s' * (count > 1)}",
                f"{options.batch / taken:.1f}",
                f"{1e3 * taken:.0f}",
                f"{seconds[first] / taken / ideal:.0%}",
                f"{losses[-1]:.6f}",
                f"{max(gaps):.0e}",
            )
        )
    kind = "simulated" if simulated else "real"
    common.show(
        f"Scaling, {options.model}, global batch {options.batch}, {kind} devices",
        ("", "pairs/s", "ms a step", "efficiency", "last loss", "losses apart"),
        rows,
        notes=_notes(options.steps, simulated=simulated),
    )


def _notes(steps: int, *, simulated: bool) -> list[str]:
    apart = (
        "Losses apart: largest relative distance of the total loss to the first row's"
        f" over {steps + 1} steps; masks and views are drawn by global row."
    )
    if simulated:
        return [
            "Simulated devices share this machine's cores: the table shows the overhead"
            " of spreading a batch, not a speed-up, and efficiency is the share of one"
            " device's speed that remains.",
            apart,
        ]
    return ["Efficiency: speed relative to the first row's times devices.", apart]


if __name__ == "__main__":
    main()
