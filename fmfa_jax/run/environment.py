# SPDX-License-Identifier: Apache-2.0
"""What a run was made with: versions, hardware, code."""

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from fmfa_jax.machines.flags import NAMES

ROOT = Path(__file__).resolve().parents[2]
OURS = "fmfa-jax"
PACKAGES = (
    OURS,
    "array_record",
    "chex",
    "clu",
    "flax",
    "jax",
    "jaxlib",
    "ml_collections",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "pillow",
    "safetensors",
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-datasets",
    "transformers",
)
# Accelerators' own packages: plugins of JAX, cuDNN, NCCL, libtpu.
PLUGINS = ("jax-cuda", "jax-rocm", "jax_cuda", "jax_rocm", "nvidia-", "libtpu")
# Where the libraries come with a container image, it tells their versions.
IMAGES = ("CUDA_VERSION", "CUDNN_VERSION", "NCCL_VERSION", "ROCM_VERSION")
NVIDIA = Path("/proc/driver/nvidia/version")


def environment() -> dict[str, Any]:
    """Return the content of environment.json; no host or user name is looked up."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.orig_argv[1:]],
        "code": {"version": code_version(), **_git()},
        "python": platform.python_version(),
        "packages": _versions(),
        "system": _system(),
        "devices": _devices(),
        "drivers": _drivers(),
        "flags": {name: os.environ[name] for name in NAMES if name in os.environ},
    }


def code_version(root: Path = ROOT) -> str:
    """Return a digest of the program's sources, equal on hosts with equal code.

    It needs no git and sees uncommitted changes. Configs are left out: they are
    compared by value.
    """
    files: list[Path] = []
    for folder in ("data_pipeline", "fmfa_jax"):
        files += (root / folder).rglob("*.py")
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.is_file()):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _git() -> dict[str, Any]:
    # Where the package is installed, a repository around it is somebody else's.
    if _run_git("ls-files", "--error-unmatch", "fmfa_jax/__init__.py") is None:
        return {"commit": _installed_commit()}
    commit = _run_git("rev-parse", "HEAD")
    status = _run_git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed_files": len((status or "").splitlines())}


def _installed_commit() -> str | None:
    """The commit that `pip install git+URL` has noted (PEP 610), if this code is it."""
    try:
        installed = metadata.distribution(OURS)
    except metadata.PackageNotFoundError:
        return None
    if Path(str(installed.locate_file(""))).resolve() != ROOT:
        return None
    noted = json.loads(installed.read_text("direct_url.json") or "{}")
    return noted.get("vcs_info", {}).get("commit_id")


def _run_git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _drivers() -> dict[str, str]:
    """What lies between JAX and the device: plugins, libraries, kernel module."""
    versions = {
        package.metadata["Name"]: package.version
        for package in metadata.distributions()
        if (package.metadata["Name"] or "").lower().startswith(PLUGINS)
    }
    versions |= {name: os.environ[name] for name in IMAGES if name in os.environ}
    with contextlib.suppress(OSError):
        versions["driver"] = NVIDIA.read_text(encoding="utf-8").splitlines()[0]
    return versions | {"platform": jax.devices()[0].client.platform_version}


def _system() -> dict[str, Any]:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages * size / 2**30, 1),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [
        line.split(":", 1)[1] for line in text.splitlines() if "model name" in line
    ]
    return names[0].strip() if names else platform.processor()


def _devices() -> dict[str, Any]:
    return {
        "platform": jax.default_backend(),
        "kinds": sorted({device.device_kind for device in jax.devices()}),
        "count": jax.device_count(),
        "local_count": jax.local_device_count(),
        "processes": jax.process_count(),
    }
