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
PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "flax", "torch")
PACKAGES += ("tensorflow-cpu", "numpy", "pillow")


def seconds(call: Callable[[], Any], count: int = 1) -> float:
    """Return how long a call takes, until its results are ready.

    With a `count` it is called so many times before the device is waited for, and the
    mean is returned: a kernel may take less time than the way to it.
    """
    start = time.perf_counter()
    for _ in range(count):
        found = call()
    wait(found)
    return (time.perf_counter() - start) / count


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
    """Measure all candidates in turns, `repeats` times; return each one's results.

    A candidate that fails is left out, and stderr says why.

    Raises:
        RuntimeError: If none is left.
    """
    found: dict[Any, list] = {name: [] for name in names}
    for _ in range(repeats):
        for name in list(found):
            try:
                found[name].append(measure(name))
            except RuntimeError as error:
                print(f"{name} is left out, it failed: {error}", file=sys.stderr)
                del found[name]
    if not found:
        raise RuntimeError("every candidate failed; see above")
    return found


def alternate(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    warmup: int = 1,
    least: float = 0.0,
) -> dict[str, float]:
    """Return the candidates' median seconds.

    Args:
        candidates: What is called, by name.
        repeats: Measurements of each.
        warmup: Rounds before them that are not counted.
        least: Seconds that a measurement should last, if need be by calling again
            before the device is waited for.
    """

    def measure(name: str) -> float:
        return seconds(candidates[name], counts[name])

    counts = dict.fromkeys(candidates, 1)
    taken = take_turns(candidates, measure, repeats=warmup)
    counts = {name: 1 + int(least / min(times)) for name, times in taken.items()}
    times = take_turns(counts, measure, repeats=repeats)
    return {name: statistics.median(taken) for name, taken in times.items()}


def child(
    module: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    limit: float | None = None,
) -> dict[str, Any]:
    """Run `python -m module arguments` alone and return what it passed to `answer`.

    A process of its own gives each candidate its own peak of memory.

    Args:
        module: Module with a `main` that ends in `answer`.
        *arguments: Arguments of its command line.
        environment: Variables added to those of this process.
        limit: Seconds after which it is killed.

    Raises:
        RuntimeError: If it fails or is killed; the message contains the end of its
            output.
    """
    command = [sys.executable, "-m", module, *arguments]
    variables = os.environ | (environment or {})
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=variables,
            timeout=limit,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(
            f"{' '.join(command)}: killed after {limit:.0f} s"
        ) from error
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def answer(values: Mapping[str, Any]) -> None:
    """In a child: pass the values to the parent, with this process's peak memory."""
    print(json.dumps(dict(values) | {"peak_gb": peak_gb()}), flush=True)


def peak_gb() -> float:
    """Return the most memory that this process has held so far, in 10^9 bytes.

    Of the accelerator, if this process computes on one; otherwise of the host.
    """
    if "jax" in sys.modules:
        stats = sys.modules["jax"].devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"] / 1e9
    elif _torch_on_gpu():
        return sys.modules["torch"].cuda.max_memory_allocated() / 1e9
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
    table = markdown(header, rows)
    print(f"\n## {title}\n", *table, "", *notes, where(), sep="\n", flush=True)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of an aligned Markdown table."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(
        1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    )
    texts = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(n) for cell, n in zip(line[1:], widths[1:], strict=True)]
        texts.append("| " + " | ".join(cells) + " |")
    return texts


def cell(value: object) -> str:
    """Return a value for a table: four digits of a number, nothing of None."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


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


def xla_flags(added: str) -> dict[str, str]:
    """Return XLA_FLAGS of this process with one more."""
    return {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {added}".strip()}


def simulated(count: int) -> dict[str, str]:
    """Return the variables of a process with so many simulated devices."""
    flag = f"--xla_force_host_platform_device_count={count}"
    # XLA has one thread per core or device. A collective holds one until all devices
    # have joined: without spare threads, two collectives that start in different orders
    # deadlock.
    threads = str(4 * max(count, os.cpu_count() or 1))
    return {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu", "NPROC": threads}


def torch_device() -> str:
    """Return where torch computes: on the GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _torch_on_gpu() -> bool:
    return "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized()


def wait(value: Any = None) -> None:
    """Wait for JAX arrays in `value`, and for all that torch computes on a GPU."""
    # A process that has not imported JAX has no JAX arrays to wait for.
    if "jax" in sys.modules:
        sys.modules["jax"].block_until_ready(value)
    if _torch_on_gpu():
        sys.modules["torch"].cuda.synchronize()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def _accelerators() -> str:
    if cards := nvidia("name", "driver_version"):
        return (
            f", {len(cards)} x {cards[0]['name']}, driver {cards[0]['driver_version']}"
        )
    if "jax" not in sys.modules:
        return ""
    import jax

    devices = [each for each in jax.devices() if each.platform != "cpu"]
    return f", {len(devices)} x {devices[0].device_kind}" if devices else ""


def nvidia(*fields: str) -> list[dict[str, str]]:
    """Return what nvidia-smi says of each card; nothing where the CPU was chosen."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}"]
    command.append("--format=csv,noheader,nounits")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    lines = done.stdout.strip().splitlines()
    return [dict(zip(fields, line.split(", "), strict=True)) for line in lines]
