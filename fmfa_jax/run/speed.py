# SPDX-License-Identifier: Apache-2.0
"""How fast a run is, and how long it will take."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
    ) -> None:
        """Start the clock.

        Args:
            start_step: Steps done before now.
            stop_step: The run's last step.
            pairs_per_step: Pairs over all devices of all processes.
            peak_flops: FLOPs a second of all devices together; None: not known.
            clock: Seconds, for tests.
        """
        self._clock = clock
        self._step, self._stop_step = start_step, stop_step
        self._pairs, self._peak_flops = pairs_per_step, peak_flops
        self._time = clock()
        self._laps: list[tuple[int, float]] = []

    def lap(self, step: int, *, flops: int = 0) -> dict[str, float]:
        """What was reached since the last lap.

        Args:
            step: The last step done.
            flops: FLOPs of the model since the last lap, over all devices.

        Returns:
            "steps_per_second", "pairs_per_second" and "seconds_left"; with `flops`
            "model_flops_per_second" and, where the devices' peak is known, their share
            of it, "mfu". Empty without a step.
        """
        now = self._clock()
        steps, seconds = step - self._step, now - self._time
        self._step, self._time = step, now
        if steps <= 0 or seconds <= 0:
            return {}
        self._laps.append((steps, seconds))
        rate = steps / seconds
        speeds = {"steps_per_second": rate, "pairs_per_second": rate * self._pairs}
        if flops:
            speeds["model_flops_per_second"] = flops / seconds
            if self._peak_flops:
                speeds["mfu"] = flops / seconds / self._peak_flops
        return speeds | {"seconds_left": self._seconds(self._stop_step - step)}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep what happens inside, such as an evaluation, out of the figures."""
        start = self._clock()
        try:
            yield
        finally:
            self._time += self._clock() - start

    def _seconds(self, steps: int) -> float:
        """What so many steps will take; the first lap, which compiles, is left out."""
        laps = self._laps[1:] or self._laps
        return steps * sum(lap[1] for lap in laps) / sum(lap[0] for lap in laps)
