# SPDX-License-Identifier: Apache-2.0
"""TensorBoard events, where clu and TensorFlow are installed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class TensorBoard:
    """Writes scalars into folder/tensorboard."""

    def __init__(self, folder: Path, *, say: Callable[[str], None]) -> None:
        """Open the events; without the packages nothing is written, and that is said.

        Args:
            folder: Folder of the run.
            say: Told why there are no events.
        """
        self._events: Any = None
        try:
            import clu.metric_writers
            import tensorflow as tf
        except ImportError as error:
            say(f"no TensorBoard events ({error}); metrics.jsonl has the same numbers")
            return
        # Otherwise TensorFlow takes the accelerator's memory at its first operation.
        tf.config.set_visible_devices([], "GPU")
        self._events = clu.metric_writers.SummaryWriter(str(folder / "tensorboard"))

    def scalars(
        self, step: int, epoch: int | float, values: Mapping[str, float]
    ) -> None:
        """Write all values under their names."""
        del epoch
        if self._events is not None:
            self._events.write_scalars(step, values)

    def close(self) -> None:
        """Flush and close the events."""
        if self._events is not None:
            self._events.close()
