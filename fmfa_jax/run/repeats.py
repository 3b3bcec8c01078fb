# SPDX-License-Identifier: Apache-2.0
"""What libraries print of a save that fails, although the error is raised as well.

On a full disk that is a thousand lines, with the cause somewhere among them.
"""

import functools
import logging
import sys
from typing import Any


@functools.cache
def silence() -> None:
    """Keep Orbax, and asyncio and TensorStore beneath it, from repeating errors.

    What they say of anything else stays. For the whole process, once.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_news)
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        """Tell of an error, unless it came of a loop that is closed."""
        # TensorStore's threads report writes to a loop that ended with the first error.
        if str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    sys.unraisablehook = hook


def _is_news(record: logging.LogRecord) -> bool:
    told = record.pathname if record.name == "absl" else record.getMessage()
    return record.levelno < logging.ERROR or "orbax" not in told
