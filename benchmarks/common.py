# SPDX-License-Identifier: Apache-2.0
"""What all benchmarks share: fair timing, one table, and what it was measured on.

Differences below 20 % mean nothing on a shared machine, whose speed drifts by up to
two: the candidates of a table therefore take turns in one run, and medians are shown.
"""

import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "torch", "tensorflow-cpu", "numpy", "pillow")


def seconds(call: Callable[[], Any]) -> float:
    """Return how long one call takes, until its JAX arrays are really there."""
    start = time.perf_counter()
    _wait(call())
    return time.perf_counter() - start


def timed(step: Callable[[], Any], count: int) -> dict[str, list[float]]:
    """Time a training step several times.

    Returns:
        times: seconds of each, until its JAX arrays are really there.
        cpu_times: seconds that all cores together spent on it in this process, which
            stay nearly the same when the machine has other work.
    """
    found: dict[str, list[float]] = {"times": [], "cpu_times": []}
    for _ in range(count):
        before = time.process_time()
        found["times"].append(seconds(step))
        found["cpu_times"].append(time.process_time() - before)
    return found


def alternate(
    candidates: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int = 1
) -> dict[str, float]:
    """Time the candidates in turns, after `warmup` rounds that do not count.

    Returns:
        The median seconds of each.
    """
    for _ in range(warmup):
        for call in candidates.values():
            _wait(call())
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            times[name].append(seconds(call))
    return {name: statistics.median(taken) for name, taken in times.items()}


def child(
    module: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run `python -m module arguments` alone and return what it passed to `answer`.

    A process of its own gives each candidate its own peak of memory.

    Args:
        module: with a `main` that ends in `answer`.
        arguments: of its command line.
        environment: variables besides those of this process.

    Raises:
        RuntimeError: it failed; with the end of what it wrote.
    """
    command = [sys.executable, "-m", module, *arguments]
    variables = os.environ | (environment or {})
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=variables
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def answer(values: Mapping[str, Any]) -> None:
    """In a child: give the values to the parent, with this process's peak memory."""
    print(json.dumps(dict(values) | {"peak_gb": peak_gb()}), flush=True)


def peak_gb() -> float:
    """Return the most memory that this process has held so far, in 10^9 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def medians(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the median of each number over several answers of a child."""
    numbers = [k for k, v in answers[0].items() if isinstance(v, int | float)]
    return {k: statistics.median(answer[k] for answer in answers) for k in numbers}


def show(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    notes: Sequence[str] = (),
) -> None:
    """Print an aligned Markdown table with date, hardware, versions and notes."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(
        1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    )
    print(f"\n## {title}\n")
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(n) for cell, n in zip(line[1:], widths[1:], strict=True)]
        print("| " + " | ".join(cells) + " |")
    for note in ("", *notes, where()):
        print(note)
    sys.stdout.flush()


def where() -> str:
    """Return one line: the date, the hardware and the versions that are installed."""
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"{day}; {_processor()}, {os.cpu_count()} cores{_accelerators()};"
        f" Python {platform.python_version()}, {', '.join(versions)}"
    )


def accelerators() -> int:
    """How many JAX sees, 0 on a CPU; asked in a child, which then lets go of them."""
    code = "import jax; print(jax.default_backend() != 'cpu' and jax.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"JAX finds no device:\n{done.stderr[-3000:]}")
    return int(done.stdout.split()[-1].replace("False", "0"))


def _wait(value: Any) -> None:
    # A process that has not imported JAX has nothing of it to wait for.
    if "jax" in sys.modules:
        sys.modules["jax"].block_until_ready(value)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def _accelerators() -> str:
    if "jax" not in sys.modules:
        return ""
    import jax

    devices = [each for each in jax.devices() if each.platform != "cpu"]
    if not devices:
        return ""
    return f", {len(devices)} x {devices[0].device_kind}"
