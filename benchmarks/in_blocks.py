# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of losses computed in blocks share: candidates and a table."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import common

TITLES = {
    "ours": "ours, in blocks",
    "dense": "JAX, all at once",
    "torch": "torch, all at once",
}
_CALLS = 3


def measure(call: Callable[[], Any]) -> dict[str, float]:
    """Return a call's seconds, value and gradient norm, and the memory before it.

    Args:
        call: Returns a value and its gradients, on the device.
    """
    base = common.peak_gb()
    value, gradients = call()
    numbers = {"base_gb": base, "value": float(value)}
    numbers["norm"] = float(sum((g * g).sum() for g in gradients)) ** 0.5
    return numbers | common.timed(call, _CALLS)


def compare(title: str, found: Mapping[str, Mapping[str, float]], dtype: str) -> None:
    """Show the candidates beside ours."""
    mine = found["ours"]
    lines = [
        (
            TITLES[name],
            f"{values['seconds']:.2f}",
            f"{values['seconds'] / mine['seconds']:.1f}",
            f"{values['cpu_seconds']:.2f}",
            f"{values['cpu_seconds'] / mine['cpu_seconds']:.1f}",
            f"{values['peak_gb'] - values['base_gb']:.2f}",
            f"{abs(values['value'] / mine['value'] - 1):.0e}",
            f"{abs(values['norm'] / mine['norm'] - 1):.0e}",
        )
        for name, values in found.items()
    ]
    header = ("", "seconds", "x ours", "CPU s", "x ours", "added GB", "value")
    common.show(
        title,
        (*header, "gradient"),
        lines,
        notes=[
            "Added: the process's peak less what it held before the first call. Value,"
            " gradient: relative distance of the value and of the gradient's norm to"
            f" ours. In {dtype}."
        ],
    )
