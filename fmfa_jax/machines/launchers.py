# SPDX-License-Identifier: Apache-2.0
"""What the environment says of the processes of a run: used or refused, never ignored.

`launch` decides. Its table follows what the launchers set: torchrun, Open MPI 4 and 5,
the PMI of MPICH's and Intel's mpiexec, SLURM, indexed Kubernetes Jobs; and, for what is
left to JAX, jax/_src/clusters of JAX 0.10.
"""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Environ = Mapping[str, str]

ALONE = "set NUM_PROCESSES=1 to run this process alone"


@dataclass(frozen=True)
class Launch:
    """How this process joins the others.

    Attributes:
        launcher: Where that is known from; "none" for a process alone.
        arguments: Of jax.distributed.initialize.
    """

    launcher: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """The variables in which a launcher says its part; "" for what it does not say.

    Attributes:
        launcher: Its name.
        count: Number of processes.
        index: Of this process.
        local_index: Of this process on its host.
        local_count: Number of processes on this host.
    """

    launcher: str
    count: str
    index: str
    local_index: str = ""
    local_count: str = ""


# The innermost first: mpirun and torchrun start their own processes within a step of
# SLURM, where its variables tell of one process a host.
SOURCES = (
    Source("torchrun", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    Source(
        "openmpi",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    Source("pmi", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    Source("slurm", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
)
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
_SLURM += ("SLURM_LOCALID",)
# What GKE says of the hosts of a TPU slice, and where a host's chips are.
_SLICE = ("MEGASCALE_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES")
_SLICE += ("TPU_PROCESS_ADDRESSES",)
_CHIPS = ("/dev/accel0", "/dev/vfio/0")

# Ours, and what JAX or its users call the same.
ADDRESS = ("COORDINATOR_ADDRESS", "JAX_COORDINATOR_ADDRESS")
COUNT = ("NUM_PROCESSES", "JAX_NUM_PROCESSES")
INDEX = ("PROCESS_ID", "JAX_PROCESS_ID")
JOB_INDEX = "JOB_COMPLETION_INDEX"


def launch(environ: Environ) -> Launch:
    """Decide how this process joins the others.

    What the user states (`ADDRESS`, `COUNT`, `INDEX`) comes first; a launcher may
    complete it. Otherwise it is the innermost launcher with several processes, then a
    TPU slice.

    Raises:
        ValueError: Names the variable that is missing, malformed or contradicted.
    """
    stated = [_stated(environ, names) for names in (ADDRESS, COUNT, INDEX)]
    source = _source(environ)
    if any(stated):
        address, count, index = stated
        if not (address or index) and _number(environ, count, least=1) == 1:
            return Launch("none")
        return Launch("environment", _explicit(environ, stated, source))
    if source is not None:
        return _by_launcher(environ, source)
    for each in SOURCES:
        if _several(environ, each):
            raise ValueError(
                f"{each.count}={environ[each.count]} announces several processes, but "
                f"{each.index} is missing: set it in each of them, or {ALONE}"
            )
    if _on_tpu(environ):
        return Launch("tpu")
    if _set(environ, JOB_INDEX):
        raise _no_address(environ, "an indexed Job", JOB_INDEX, "in the pod's env")
    return Launch("none")


def _by_launcher(environ: Environ, source: Source) -> Launch:
    name = source.launcher
    if name == "slurm":
        missing = [each for each in _SLURM if not _set(environ, each)]
        if missing:
            raise ValueError(
                f"{source.count}={environ[source.count]} announces processes of SLURM, "
                f"but without {', '.join(missing)}: start them with srun, or {ALONE}"
            )
        return Launch(name, _detected(environ, "slurm"))
    if name == "torchrun":
        return Launch(name, _joined(environ, _master(environ), source))
    if name == "openmpi" and _set(environ, "OMPI_MCA_orte_hnp_uri"):  # until 4
        return Launch(name, _detected(environ, "ompi"))
    way = "mpirun -x" if name == "openmpi" else "mpiexec -genv"
    said = "Open MPI" if name == "openmpi" else "PMI"
    raise _no_address(environ, said, source.count, f"as by {way}")


def _detected(environ: Environ, method: str) -> dict[str, Any]:
    """The arguments with which JAX reads a launcher's variables itself."""
    if _set(environ, "JAX_COORDINATOR_PORT"):
        _number(environ, "JAX_COORDINATOR_PORT", least=1)
    return {"cluster_detection_method": method, **_chosen_devices(environ)}


def _no_address(environ: Environ, who: str, name: str, way: str) -> ValueError:
    return ValueError(
        f"{who} sets {name}={environ[name]} but names no coordinator: wanted "
        f"COORDINATOR_ADDRESS=HOST:PORT in all processes, {way}; {ALONE}"
    )


def _explicit(
    environ: Environ, stated: list[str], source: Source | None
) -> dict[str, Any]:
    """The arguments where the user states some of them."""
    address, count, index = stated
    job = JOB_INDEX if _set(environ, JOB_INDEX) else ""
    count = count or (source.count if source else "")
    index = index or (source.index if source else job)
    torch = source is not None and source.launcher == "torchrun"
    found = {ADDRESS[0]: address or torch, COUNT[0]: count, INDEX[0]: index}
    missing = [name for name, variable in found.items() if not variable]
    if missing:
        raise ValueError(
            f"wanted {', '.join(found)} together, missing: {', '.join(missing)}; set "
            f"them in every process, or {ALONE}"
        )
    place = _host_and_port(environ[address], address) if address else _master(environ)
    own = source is not None and environ[source.index] == environ[index]
    return _joined(environ, place, Source("", count, index), source if own else None)


def _joined(
    environ: Environ, address: str, named: Source, local: Source | None = None
) -> dict[str, Any]:
    """The arguments, once it is known where each of them stands."""
    count = _number(environ, named.count, least=1)
    index = _number(environ, named.index, least=0)
    if index >= count:
        raise ValueError(
            f"{named.index}={index}: wanted 0 to {count - 1}, since "
            f"{named.count}={count}"
        )
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        # Nothing is left for JAX to find, and to warn of.
        "cluster_detection_method": "deactivate",
        **_local_devices(environ, local or named),
    }


def _local_devices(environ: Environ, source: Source) -> dict[str, list[int]]:
    """One GPU for each process of a host, as JAX has it; all for a single one."""
    if chosen := _chosen_devices(environ):
        return chosen
    alone = environ.get(source.local_count) == "1"
    if alone or not _set(environ, source.local_index):
        return {}
    return {"local_device_ids": [_number(environ, source.local_index, least=0)]}


def _chosen_devices(environ: Environ) -> dict[str, list[int]]:
    """What the user says of this process's devices."""
    name = "JAX_LOCAL_DEVICE_IDS"
    chosen = environ.get(name, "")
    if chosen and not re.fullmatch(r"\d+(,\d+)*", chosen, re.ASCII):
        raise ValueError(f"{name}={chosen!r}: wanted numbers such as 0,1")
    return {"local_device_ids": [int(x) for x in chosen.split(",")]} if chosen else {}


def _source(environ: Environ) -> Source | None:
    """The innermost launcher that has started several processes."""
    for source in SOURCES:
        if _several(environ, source) and _set(environ, source.index):
            return _within_slurm(environ, source)
    return None


def _several(environ: Environ, source: Source) -> bool:
    """Whether a launcher tells of several processes, or of what is no number."""
    return environ.get(source.count, "") not in ("", "0", "1")


def _within_slurm(environ: Environ, source: Source) -> Source:
    """SLURM, where PMI only repeats what srun says."""
    slurm = SOURCES[-1]
    ours, theirs = (
        [environ.get(name) for name in (each.count, each.index)]
        for each in (source, slurm)
    )
    return slurm if source.launcher == "pmi" and ours == theirs else source


def _master(environ: Environ) -> str:
    """The coordinator's address beside PyTorch's.

    torchrun's agent listens on MASTER_PORT itself and leaves the next port free.
    """
    missing = [x for x in ("MASTER_ADDR", "MASTER_PORT") if not _set(environ, x)]
    if missing:
        raise ValueError(
            f"WORLD_SIZE={environ['WORLD_SIZE']} announces several processes, but "
            f"{' and '.join(missing)} is missing: set it, or {ALONE}"
        )
    port = environ.get("JAX_COORDINATOR_PORT") or environ["MASTER_PORT"]
    agent = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if agent and port == environ["MASTER_PORT"]:
        port = str(_number(environ, "MASTER_PORT", least=1) + 1)
    host = environ["MASTER_ADDR"]
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return _host_and_port(f"{host}:{port}", "MASTER_ADDR:MASTER_PORT")


def _host_and_port(text: str, name: str) -> str:
    match = re.fullmatch(r"([\w.-]+|\[[\w.%]*:[\w.:%]*\]):(\d{1,5})", text, re.ASCII)
    if match is None or not 0 < int(match[2]) < 2**16:
        raise ValueError(
            f"{name}={text!r}: wanted HOST:PORT, such as host0:8476 or [fd00::1]:8476"
        )
    return text


def _stated(environ: Environ, names: tuple[str, ...]) -> str:
    """Which of several names of one thing is set, "" if none is."""
    found = [name for name in names if _set(environ, name)]
    if len({environ[name] for name in found}) > 1:
        said = " and ".join(f"{name}={environ[name]}" for name in found)
        raise ValueError(f"{said} contradict each other: unset one of them")
    return found[0] if found else ""


def _set(environ: Environ, name: str) -> bool:
    return bool(environ.get(name))


def _number(environ: Environ, name: str, *, least: int) -> int:
    text = environ[name]
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) < least:
        raise ValueError(f"{name}={text!r}: wanted a whole number, at least {least}")
    return int(text)


def _on_tpu(environ: Environ) -> bool:
    if (environ.get("JAX_PLATFORMS") or "tpu").split(",")[0] != "tpu":
        return False
    if any(environ.get(name) for name in _SLICE):
        return True
    # A TPU VM, whose metadata JAX asks for the others.
    chips = any(Path(path).exists() for path in _CHIPS)
    return chips and importlib.util.find_spec("libtpu") is not None
