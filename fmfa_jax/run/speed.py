# SPDX-License-Identifier: Apache-2.0
"""How fast a run is, and how long it will take."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import jax

COMPILATION = "/jax/core/compile/backend_compile_duration"
"""JAX's event for a program that was compiled, or loaded where it was kept."""

LAPS = 2
"""So many laps without a compilation tell how long the rest will take."""


class Compilations:
    """The number of programs that JAX has compiled since this was made."""

    def __init__(self) -> None:
        self._count = 0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def __call__(self) -> int:
        """How many there are now."""
        return self._count

    def _hear(self, event: str, seconds: float, **rest: object) -> None:
        self._count += event == COMPILATION


compilations = cache(Compilations)
"""The counter of this process: JAX keeps every listener."""


class Speed:
    """Measures the time between two log lines.

    JAX computes ahead of Python: call `lap` only after values of the last step were
    fetched from the device; then the clock spans exactly the steps in between.
    """

    def __init__(
        self,
        *,
        start_step: int,
        stop_step: int,
        pairs_per_step: int,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        compiled: Callable[[], int] | None = None,
    ) -> None:
        """Start the clock.

        Args:
            start_step: Steps done before now.
            stop_step: The run's last step.
            pairs_per_step: Pairs over all devices of all processes.
            peak_flops: FLOPs a second of all devices together; None: not known.
            clock: Seconds, for tests.
            compiled: Programs compiled so far, for tests.
        """
        self._clock = clock
        self._step, self._stop_step = start_step, stop_step
        self._pairs, self._peak_flops = pairs_per_step, peak_flops
        self._time = clock()
        self._compiled = compiled or compilations()
        self._programs = self._compiled()
        self._laps, self._lap_steps, self._lap_seconds = 0, 0, 0.0

    def lap(self, step: int, *, flops: int = 0) -> dict[str, float]:
        """What was reached since the last lap.

        Args:
            step: The last step done.
            flops: FLOPs of the model since the last lap, over all devices.

        Returns:
            "steps_per_second" and "pairs_per_second"; with `flops`
            "model_flops_per_second" and, where the devices' peak is known, their share
            of it, "mfu"; "seconds_left" after `LAPS` laps in which nothing was
            compiled. Empty without a step.
        """
        now = self._clock()
        steps, seconds = step - self._step, now - self._time
        self._step, self._time = step, now
        if steps <= 0 or seconds <= 0:
            return {}
        self._count(steps, seconds)
        rate = steps / seconds
        speeds = {"steps_per_second": rate, "pairs_per_second": rate * self._pairs}
        if flops:
            speeds["model_flops_per_second"] = flops / seconds
            if self._peak_flops:
                speeds["mfu"] = flops / seconds / self._peak_flops
        if self._laps >= LAPS:
            left = (self._stop_step - step) * self._lap_seconds / self._lap_steps
            speeds["seconds_left"] = left
        return speeds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep what happens inside, such as an evaluation, out of the figures."""
        start, programs = self._clock(), self._compiled()
        try:
            yield
        finally:
            self._time += self._clock() - start
            self._programs += self._compiled() - programs

    def _count(self, steps: int, seconds: float) -> None:
        """Let a lap tell how long the rest takes, if nothing was compiled in it."""
        before, self._programs = self._programs, self._compiled()
        if self._programs == before:
            self._laps += 1
            self._lap_steps += steps
            self._lap_seconds += seconds
