# SPDX-License-Identifier: Apache-2.0
r"""The same global batch on 1, 2, 4 and 8 devices: pairs a second, and equal losses.

    python -m benchmarks.scaling                # on a CPU: simulated devices
    python -m benchmarks.scaling --model vit-b-16 --batch 256 --dtype bfloat16

Where there are accelerators, 1, 2, 4, .. of them are used. On a CPU the devices are
simulated: they share the same cores, so nothing can become faster, and what the table
shows is what it costs to spread a batch. Each count runs in a process of its own, and
the processes take turns.
"""

import argparse
import os
import statistics
from typing import Any

from benchmarks import common

DEVICES = (1, 2, 4, 8)
TERMS = ("a_sdm", "id", "mlm", "efa")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="a preset's name")
    parser.add_argument("--batch", type=int, default=64, help="of all devices")
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
    answers: dict[int, list[dict]] = {count: [] for count in counts}
    for _ in range(options.repeats):
        for count in counts:
            answers[count].append(_ask(count, options, simulated=not present))
    _compare(options, answers, simulated=not present)


def _ask(count: int, options: argparse.Namespace, *, simulated: bool) -> dict:
    flags = ["--model", options.model, "--batch", str(options.batch)]
    flags += ["--dtype", options.dtype, "--steps", str(options.steps)]
    flags += ["--layers", str(options.layers)] if options.layers else []
    variables = {}
    if simulated:
        flag = f"--xla_force_host_platform_device_count={count}"
        # XLA has a thread for each core or device. A collective keeps one until all
        # devices have come, so with no more two in different orders wait for ever.
        threads = str(4 * max(count, os.cpu_count() or 1))
        variables = {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu", "NPROC": threads}
    only = ("--only", str(count))
    return common.child("benchmarks.scaling", *flags, *only, environment=variables)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train from the same weights on the same batch: seconds and losses."""
    import jax

    from benchmarks.train_step_case import LR, make_batch
    from fmfa_jax import models
    from fmfa_jax.machines.mesh import check_batch_size, make_mesh, to_devices
    from fmfa_jax.methods import fmfa as supervised
    from fmfa_jax.training.optimizer import make_optimizer
    from fmfa_jax.training.step import make_state, make_step

    mesh = make_mesh(devices=jax.devices()[: options.only])
    check_batch_size(options.batch, mesh)
    config = _config(options)
    loss = supervised.make_loss(
        config, supervised.Recipe(weights=dict.fromkeys(TERMS, 1.0))
    )
    optimizer = make_optimizer(lambda step: LR)
    state = make_state(models.init_params(config, 0), optimizer, mesh)
    step = make_step(
        loss, optimizer, state, mesh=mesh, seed=0, schedule=lambda step: LR
    )
    batch = to_devices(make_batch(vars(config), options.batch), mesh)
    state, measured = step(state, batch)
    losses, held = [measured], {"state": state}

    def one() -> Any:
        held["state"], measured = step(held["state"], batch)
        losses.append(measured)
        return held["state"], measured

    taken = common.timed(one, options.steps)
    totals = [float(measured.scalars["total"]) for measured in losses]
    return taken | {"losses": totals, "devices": mesh.size}


def _config(options: argparse.Namespace) -> Any:
    import dataclasses

    from fmfa_jax import models

    towers = ("image_layers", "text_layers") if options.layers else ()
    return dataclasses.replace(
        models.PRESETS[options.model],
        **dict.fromkeys(towers, options.layers),
        classes=options.batch,
        irr_layers=options.layers or 4,
        dtype=options.dtype,
    )


def _compare(
    options: argparse.Namespace, answers: dict[int, list[dict]], *, simulated: bool
) -> None:
    seconds = {
        count: statistics.median(t for run in runs for t in run["times"])
        for count, runs in answers.items()
    }
    first, *_ = seconds
    reference = answers[first][0]["losses"]
    rows = []
    for count, taken in seconds.items():
        losses = answers[count][0]["losses"]
        gaps = [abs(a / b - 1) for a, b in zip(losses, reference, strict=True)]
        # Simulated devices share the cores that one has: ideal is the same speed.
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
        f"Losses apart: largest relative distance of the total to the first line's over"
        f" {steps + 1} steps; masks and views are drawn by global row."
    )
    if simulated:
        return [
            "Simulated devices share this machine's cores: the table shows the overhead"
            " of spreading a batch, not a speed-up, and efficiency is the speed of one"
            " device that is kept.",
            apart,
        ]
    return ["Efficiency: speed against that of the first line times devices.", apart]


if __name__ == "__main__":
    main()
