# SPDX-License-Identifier: Apache-2.0
"""What the environment says of the processes of a run is used or refused by name."""

import importlib

import pytest

from fmfa_jax.machines import launchers
from fmfa_jax.machines.launchers import Launch, launch

ADDRESS = {"COORDINATOR_ADDRESS": "h:1"}
OURS = ADDRESS | {"NUM_PROCESSES": "4", "PROCESS_ID": "3"}
JAX = {
    "JAX_COORDINATOR_ADDRESS": "h:1",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
SLURM = {  # two tasks, of which this is the second
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
ORTE = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3"}
PMI = {"PMI_SIZE": "4", "PMI_RANK": "3"}
TORCH = {
    "MASTER_ADDR": "h",
    "MASTER_PORT": "29500",
    "WORLD_SIZE": "4",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
}
AGENT = {"TORCHELASTIC_USE_AGENT_STORE": "True"}
JOB = {"JOB_COMPLETION_INDEX": "3", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
TPU = {"TPU_WORKER_HOSTNAMES": "t0,t1"}


def joined(address: str = "h:1", count: int = 4, index: int = 3, *devices: int) -> dict:
    """The arguments of a process that is told all."""
    found = {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }
    return found | ({"local_device_ids": list(devices)} if devices else {})


def detected(method: str) -> dict:
    """The arguments with which JAX looks for itself."""
    return {"cluster_detection_method": method}


LOCAL = {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
USED = {
    "nothing": ({}, "none", {}),
    "ours": (OURS, "environment", joined()),
    "jax's": (JAX, "environment", joined()),
    "both alike": (OURS | JAX, "environment", joined()),
    "IPv6": (
        OURS | {"COORDINATOR_ADDRESS": "[fd00::1]:8476"},
        "environment",
        joined("[fd00::1]:8476"),
    ),
    "alone, whatever is around": ({"NUM_PROCESSES": "1"} | MPI | JOB, "none", {}),
    "the user's word before a launcher's": (OURS | SLURM, "environment", joined()),
    "devices": (
        OURS | {"JAX_LOCAL_DEVICE_IDS": "2,3"},
        "environment",
        joined("h:1", 4, 3, 2, 3),
    ),
    "slurm": (SLURM, "slurm", detected("slurm")),
    "one task of slurm": (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, "none", {}),
    "an allocation": ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, "none", {}),
    "slurm with an address": (
        SLURM | {"JAX_COORDINATOR_ADDRESS": "h:1"},
        "environment",
        joined("h:1", 2, 1, 0),
    ),
    "slurm's numbers by hand": (
        SLURM | ADDRESS | {"NUM_PROCESSES": "2", "PROCESS_ID": "1"},
        "environment",
        joined("h:1", 2, 1, 0),
    ),
    "srun with PMI": (SLURM | {"PMI_SIZE": "2", "PMI_RANK": "1"}, "slurm", None),
    "Open MPI 4": (MPI | ORTE, "openmpi", detected("ompi")),
    "Open MPI 4 in slurm": (MPI | ORTE | SLURM, "openmpi", detected("ompi")),
    "Open MPI 5": (MPI | ADDRESS, "environment", joined()),
    "Open MPI 5 in slurm": (
        MPI | LOCAL | ADDRESS | SLURM,
        "environment",
        joined("h:1", 4, 3, 1),
    ),
    "Open MPI, one process a host": (
        MPI | LOCAL | ADDRESS | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
        "environment",
        joined(),
    ),
    "Open MPI, devices": (
        MPI | LOCAL | ADDRESS | {"JAX_LOCAL_DEVICE_IDS": "2,3"},
        "environment",
        joined("h:1", 4, 3, 2, 3),
    ),
    "one process of Open MPI": (MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, "none", {}),
    "PMI": (PMI | ADDRESS, "environment", joined()),
    "PMI in slurm": (PMI | ADDRESS | SLURM, "environment", joined()),
    "torchrun": (TORCH | AGENT, "torchrun", joined("h:29501", 4, 3, 1)),
    "torch's variables": (TORCH, "torchrun", joined("h:29500", 4, 3, 1)),
    "torchrun in slurm": (
        TORCH | {"LOCAL_WORLD_SIZE": "1"} | SLURM,
        "torchrun",
        joined("h:29500"),
    ),
    "torchrun, IPv6": (
        TORCH | {"MASTER_ADDR": "fd00::1"},
        "torchrun",
        joined("[fd00::1]:29500", 4, 3, 1),
    ),
    "torchrun, a port": (
        TORCH | AGENT | {"JAX_COORDINATOR_PORT": "7"},
        "torchrun",
        joined("h:7", 4, 3, 1),
    ),
    "torchrun with an address": (
        TORCH | ADDRESS,
        "environment",
        joined("h:1", 4, 3, 1),
    ),
    "one process of torchrun": (TORCH | {"WORLD_SIZE": "1"}, "none", {}),
    "a size for srun's tasks": (SLURM | {"WORLD_SIZE": "2"}, "slurm", None),
    "only a master": ({"MASTER_ADDR": "h", "MASTER_PORT": "1"}, "none", {}),
    "an indexed job": (
        JOB | ADDRESS | {"NUM_PROCESSES": "4"},
        "environment",
        joined(),
    ),
    "a job of TPUs": (JOB | TPU, "tpu", {}),
    "a TPU slice": (TPU, "tpu", {}),
    "a TPU slice, of any platform": (TPU | {"JAX_PLATFORMS": ""}, "tpu", {}),
    "a TPU slice by addresses": ({"TPU_PROCESS_ADDRESSES": "t0:1,t1:1"}, "tpu", {}),
    "several TPU slices": ({"MEGASCALE_COORDINATOR_ADDRESS": "t0:1"}, "tpu", {}),
    "a job's TPU with an address": (
        TPU | JOB | ADDRESS | {"NUM_PROCESSES": "4"},
        "environment",
        joined(),
    ),
    "a TPU slice's CPUs": (TPU | {"JAX_PLATFORMS": "cpu"}, "none", {}),
}


@pytest.mark.parametrize("case", USED)
def test_what_is_used(case):
    environ, launcher, arguments = USED[case]
    found = launch(environ)
    assert found.launcher == launcher
    assert arguments is None or found.arguments == arguments


def test_a_tpu_vm_asks_its_metadata(monkeypatch, tmp_path):
    """No variable tells of the others: JAX asks, where there are chips and libtpu."""
    chip, libtpu = tmp_path / "accel0", tmp_path / "packages" / "libtpu"
    monkeypatch.setattr(launchers, "_CHIPS", (str(chip),))
    monkeypatch.syspath_prepend(libtpu.parent)
    assert launch({}) == Launch("none")
    chip.touch()
    assert launch({}) == Launch("none")
    libtpu.mkdir(parents=True)
    (libtpu / "__init__.py").touch()
    importlib.invalidate_caches()
    assert launch({}) == Launch("tpu")
    assert launch({"JAX_PLATFORMS": "cpu"}) == Launch("none")
    assert launch(OURS) == Launch("environment", joined())
    assert launch({"NUM_PROCESSES": "1"}) == Launch("none")


ALONE = "set NUM_PROCESSES=1 to run this process alone"
REFUSED = {
    "only an address": (ADDRESS, "missing: NUM_PROCESSES, PROCESS_ID; .*" + ALONE),
    "only an index": ({"PROCESS_ID": "0"}, "missing: COORDINATOR_ADDRESS, NUM_PROC"),
    "only a count": ({"NUM_PROCESSES": "2"}, "missing: COORDINATOR_ADDRESS, PROCESS"),
    "only jax's": ({"JAX_PROCESS_ID": "0"}, "missing: COORDINATOR_ADDRESS, NUM"),
    "two addresses": (
        OURS | {"JAX_COORDINATOR_ADDRESS": "h:2"},
        "COORDINATOR_ADDRESS=h:1 and JAX_COORDINATOR_ADDRESS=h:2 contradict",
    ),
    "a count in words": (
        OURS | {"NUM_PROCESSES": "two"},
        "NUM_PROCESSES='two': wanted a whole number, at least 1",
    ),
    "no process": (OURS | {"NUM_PROCESSES": "0"}, "NUM_PROCESSES='0': wanted"),
    "an index out of range": (
        OURS | {"PROCESS_ID": "4"},
        "PROCESS_ID=4: wanted 0 to 3, since NUM_PROCESSES=4",
    ),
    "a negative index": (OURS | {"PROCESS_ID": "-1"}, "PROCESS_ID='-1': wanted"),
    "a job's index out of range": (
        ADDRESS | JOB | {"NUM_PROCESSES": "2"},
        "JOB_COMPLETION_INDEX=3: wanted 0 to 1, since NUM_PROCESSES=2",
    ),
    "devices in words": (
        OURS | {"JAX_LOCAL_DEVICE_IDS": "all"},
        "JAX_LOCAL_DEVICE_IDS='all': wanted numbers such as 0,1",
    ),
    "slurm, devices in words": (
        SLURM | {"JAX_LOCAL_DEVICE_IDS": "0;1"},
        "JAX_LOCAL_DEVICE_IDS='0;1': wanted",
    ),
    "slurm, a port in words": (
        SLURM | {"JAX_COORDINATOR_PORT": "http"},
        "JAX_COORDINATOR_PORT='http': wanted a whole number",
    ),
    "half of slurm": (
        {k: v for k, v in SLURM.items() if k != "SLURM_LOCALID"},
        "without SLURM_LOCALID: start them with srun",
    ),
    "Open MPI 5": (MPI, "wanted COORDINATOR_ADDRESS=HOST:PORT .*mpirun -x"),
    "Open MPI 5 in slurm": (MPI | SLURM, "OMPI_COMM_WORLD_SIZE=4 but names no coord"),
    "PMI": (PMI, "PMI_SIZE=4 but names no coordinator.*mpiexec"),
    "PMI in slurm": (PMI | SLURM, "PMI_SIZE=4 but names no coordinator"),
    "a size without a rank": (
        {"WORLD_SIZE": "4"},
        "WORLD_SIZE=4 announces several processes, but RANK is missing",
    ),
    "torch without a master": (
        {"WORLD_SIZE": "4", "RANK": "0"},
        "MASTER_ADDR and MASTER_PORT is missing",
    ),
    "torch, a size in words": (TORCH | {"WORLD_SIZE": "x"}, "WORLD_SIZE='x': wanted"),
    "torch, no port": (
        TORCH | {"MASTER_PORT": "x"},
        "MASTER_ADDR:MASTER_PORT='h:x': wanted HOST:PORT",
    ),
    "an indexed job": (JOB, "JOB_COMPLETION_INDEX=3 but names no coord.*" + ALONE),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    environ, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as refusal:
        launch(environ)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "address",
    [
        *("host0", "host0:", ":8476", "h:port", "h:0", "h:65536", "http://h:1"),
        *("h h:1", "fd00::1", "fd00::1:8476", "h:1\n", "[h]:1"),
    ],
)
def test_an_address_has_a_host_and_a_port(address):
    with pytest.raises(ValueError, match=r"^COORDINATOR_ADDRESS=.*wanted HOST:PORT"):
        launch(OURS | {"COORDINATOR_ADDRESS": address})
