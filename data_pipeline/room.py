# SPDX-License-Identifier: Apache-2.0
"""Where caches lie, and whether one fits into the free memory or disk space."""

import os
from pathlib import Path

SHARE_OF_FREE = 0.9
"""Largest share of the free memory or disk space that a cache may take."""

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def user_folder() -> Path:
    """Return the folder of all caches, unless another one is named."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "fmfa_jax"


def check(images: int, size: int, *, free: int) -> None:
    """Refuse a cache that is too large.

    Args:
        images: Number of pictures that it holds.
        size: Bytes that it still lacks for them.
        free: Bytes that are free where it lies.

    Raises:
        OSError: If it does not fit; the message states both sizes.
    """
    if size > SHARE_OF_FREE * free:
        raise OSError(
            f"it needs {gigabytes(size)} for {images} decoded pictures, but may take "
            f"{SHARE_OF_FREE:.0%} of the {gigabytes(free)} that are free"
        )


def free_memory() -> int:
    """Return how many more bytes of memory this process may take."""
    amounts = [_available()]
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        amounts.append(limit - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no control group, or a limit of "max": only the host's memory counts
    return max(0, min(amounts))


def _available() -> int:
    """Return the host's free memory, including what the kernel can reclaim."""
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def gigabytes(size: int) -> str:
    """Return a size in words."""
    return f"{size / 1e9:.2f} GB"
