# SPDX-License-Identifier: Apache-2.0
r"""The memory that a whole training step takes, by the compiled program's own report.

    python -m benchmarks.memory                          # FMFA, batch 64 and 128
    python -m benchmarks.memory --model vit-l-14 --image-size 336 336 --devices 4 8

The step is compiled for this machine's device and nothing is allocated. "Program" is
what XLA plans: arguments, results and temporary arrays. On a GPU that is what training
will take. A CPU's program of the same step holds float32 where a GPU's would hold
bfloat16, since a CPU multiplies bfloat16 in float32; and it has no cuDNN, so that the
shares of attention are stored. It is an upper bound for a GPU of the same --dtype.

With --devices the state is shared (mesh.fsdp) by so many devices, simulated if there
is no accelerator, and --batch counts the pairs of each.
"""

import argparse
import sys
from typing import Any

from benchmarks import common
from fmfa_jax.models import PRESETS
from fmfa_jax.models.config import DTYPES, REMATS

CARDS = (12, 24, 80)
"""What cards are sold with, in units of 2^30 bytes."""
SHARE = 0.92
"""What JAX may take of it with XLA_PYTHON_CLIENT_MEM_FRACTION; by default 0.75."""


def main() -> int:
    """Print the table."""
    parser = common.parser(__doc__)
    parser.add_argument("--method", default="fmfa", help="one of whole_step.RECIPES")
    parser.add_argument("--model", choices=PRESETS, default="vit-b-16")
    parser.add_argument("--layers", type=int, help="of each tower, for a quick look")
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--dtype", choices=DTYPES, help="default: the device's")
    parser.add_argument("--remat", choices=REMATS, nargs="*", default=list(REMATS))
    parser.add_argument("--devices", type=int, nargs="*", default=[1])
    parser.add_argument("--only", action="store_true", help="one program, as JSON")
    options = parser.parse_args()
    if options.only:
        common.answer(measure(options))
        return 0
    present = common.accelerators()
    cases = {
        f"{devices} x {batch}, {remat}": (batch, remat, devices)
        for devices in options.devices
        for batch in options.batch
        for remat in options.remat
    }
    flags = common.flags(options, "method", "model", "layers", "dtype")
    if options.image_size:
        flags += ["--image-size", *map(str, options.image_size)]
    found = common.take_turns(
        cases, lambda name: _ask(*cases[name], flags, simulated=not present), repeats=1
    )
    _report(options, {name: answer for name, (answer,) in found.items()})
    return int(len(found) < len(cases))


def _ask(batch: int, remat: str, devices: int, flags: list[str], *, simulated: bool):
    case = ("--batch", str(batch), "--remat", remat, "--devices", str(devices))
    variables = common.simulated(devices) if simulated and devices > 1 else {}
    return common.child(
        "benchmarks.memory", "--only", *case, *flags, environment=variables
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Compile one step; return its report in 10^9 bytes a device."""
    import jax

    from benchmarks.whole_step import build, report_gb, sized
    from fmfa_jax.machines.mesh import make_mesh

    (batch,), (remat,), (devices,) = options.batch, options.remat, options.devices
    sizes = {"image_size": tuple(options.image_size)} if options.image_size else {}
    choices = {"dtype": options.dtype} if options.dtype else {}
    model = sized(
        options.model, layers=options.layers, sizes=sizes, remat=remat, **choices
    )
    mesh = make_mesh(fsdp=devices, devices=jax.devices()[:devices])
    whole = build(model, batch=batch * devices, method=options.method, mesh=mesh)
    program = whole.lower(batch * devices).compile()
    how = f"{model.dtype}, attention {model.attention}, {jax.devices()[0].device_kind}"
    return report_gb(program) | {"how": how}


def _report(options: argparse.Namespace, found: dict[str, dict[str, Any]]) -> None:
    rows = []
    header = ("devices x batch, remat", "state GB", "temporary GB", "program GB")
    for name, one in found.items():
        room = [SHARE * card * 2**30 / 1e9 for card in CARDS]
        fits = ["yes" if one["program"] <= limit else "no" for limit in room]
        sizes = (one["arguments"], one["temporary"], one["program"])
        rows.append((name, *map(common.cell, sizes), *fits))
    size = "x".join(map(str, options.image_size or ()))
    common.show(
        f"Memory of {options.method}'s step, {options.model} {size}".rstrip(),
        (*header, *(f"fits {card} GB" for card in CARDS)),
        rows,
        notes=[
            f"Compiled for {next(iter(found.values()))['how']}; 10^9 bytes a device."
            f" It fits where {SHARE:.0%} of the card's memory hold it."
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
