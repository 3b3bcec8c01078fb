# SPDX-License-Identifier: Apache-2.0
"""What all benchmarks share: fair timing, one kind of table, and a note of the machine.

The speed of a shared machine drifts by up to a factor of two. The candidates of a table
therefore take turns within one run, and medians are shown; even so, differences below
20 % mean nothing.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "torch", "tensorflow-cpu", "numpy", "pillow")


def seconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes, until its JAX arrays are ready."""
    start = time.perf_counter()
    _wait(call())
    return time.perf_counter() - start


def timed(step: Callable[[], Any], count: int) -> dict[str, float]:
    """Time a training step `count` times.

    Returns:
        seconds: Median until the step's JAX arrays are ready.
        cpu_seconds: Median that all cores together spend on it in this process, which
            hardly changes when the machine has other work.
    """
    times, cpu_times = [], []
    for _ in range(count):
        before = time.process_time()
        times.append(seconds(step))
        cpu_times.append(time.process_time() - before)
    return {
        "seconds": statistics.median(times),
        "cpu_seconds": statistics.median(cpu_times),
    }


def take_turns(
    names: Iterable[Any], measure: Callable[[Any], Any], *, repeats: int
) -> dict[Any, list]:
    """Measure all candidates in turns, `repeats` times; return each one's results."""
    found: dict[Any, list] = {name: [] for name in names}
    for _ in range(repeats):
        for name, results in found.items():
            results.append(measure(name))
    return found


def alternate(
    candidates: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int = 1
) -> dict[str, float]:
    """Return the candidates' median seconds, after `warmup` uncounted rounds."""

    def measure(name: str) -> float:
        return seconds(candidates[name])

    take_turns(candidates, measure, repeats=warmup)
    times = take_turns(candidates, measure, repeats=repeats)
    return {name: statistics.median(taken) for name, taken in times.items()}


def child(
    module: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run `python -m module arguments` alone and return what it passed to `answer`.

    A process of its own gives each candidate its own peak of memory.

    Args:
        module: Module with a `main` that ends in `answer`.
        *arguments: Arguments of its command line.
        environment: Variables added to those of this process.

    Raises:
        RuntimeError: If it fails; the message contains the end of its output.
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
    """In a child: pass the values to the parent, with this process's peak memory."""
    print(json.dumps(dict(values) | {"peak_gb": peak_gb()}), flush=True)


def peak_gb() -> float:
    """Return the most memory that this process has held so far, in 10^9 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def children(
    module: str, names: Iterable[str], *arguments: str, repeats: int
) -> dict[str, dict[str, float]]:
    """Run `module` with `--only NAME` for all candidates in turns.

    Returns:
        For each candidate the medians of the numbers that its children answered.
    """
    answers = take_turns(
        names, lambda name: child(module, *arguments, "--only", name), repeats=repeats
    )
    return {name: medians(each) for name, each in answers.items()}


def medians(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the median of each number over several answers of a child."""
    numbers = [k for k, v in answers[0].items() if isinstance(v, int | float)]
    return {k: statistics.median(answer[k] for answer in answers) for k in numbers}


def parser(module_doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose description is the first line of a module's docstring."""
    return argparse.ArgumentParser(description=(module_doc or "").split("\n")[0])


def flags(options: argparse.Namespace, *names: str) -> list[str]:
    """Return the named options that are not None as flags again, for a child."""
    given = {name: getattr(options, name) for name in names}
    return [
        part
        for name, value in given.items()
        if value is not None
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]


def show(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    notes: Sequence[str] = (),
) -> None:
    """Print an aligned Markdown table with notes, date, hardware and versions."""
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
    """Return one line with the date, the hardware and the installed versions."""
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
    """Return how many accelerators JAX sees, asking in a child that then frees them."""
    code = "import jax; print(jax.default_backend() != 'cpu' and jax.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"JAX finds no device:\n{done.stderr[-3000:]}")
    return int(done.stdout.split()[-1].replace("False", "0"))


def _wait(value: Any) -> None:
    # A process that has not imported JAX has no JAX arrays to wait for.
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
