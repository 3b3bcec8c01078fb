# SPDX-License-Identifier: Apache-2.0
"""Where devices lie on the mesh, with stand-ins for TPUs of several slices."""

import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from fmfa_jax.machines.mesh import layout

CHIPS = 4
"""Of a host."""


@dataclass(frozen=True)
class Device:
    """What a mesh asks of a device."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "tpu"


def machine(slices: list[int], platform: str = "tpu") -> list[Device]:
    """The devices of processes that lie in these slices, in any order.

    A slice numbers its chips by position: their ids say nothing of their hosts.
    """
    rng = random.Random(0)
    ids = rng.sample(range(100), CHIPS * len(slices))
    devices = [
        Device(ids[CHIPS * process + chip], process, index, platform)
        for process, index in enumerate(slices)
        for chip in range(CHIPS)
    ]
    return rng.sample(devices, len(devices))


@pytest.mark.parametrize("slices", [[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 2], [5, 5, 5]])
@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_parameters_travel_inside_slices_and_gradients_across(slices, fsdp):
    devices = machine(slices)
    if min(CHIPS * slices.count(index) for index in slices) % fsdp:
        with pytest.raises(ValueError, match=f"mesh.fsdp={fsdp} does not divide"):
            layout(devices, fsdp)
        return
    grid = layout(devices, fsdp)
    assert grid.shape == (len(devices) // fsdp, fsdp)
    assert sorted(grid.flat, key=id) == sorted(devices, key=id)
    for row in grid:
        assert len({device.slice_index for device in row}) == 1
        if fsdp <= CHIPS:
            assert len({device.process_index for device in row}) == 1
    # The outer network is crossed once between slices, in the order of processes.
    crossings = [a.slice_index != b.slice_index for a, b in pairwise(grid.flat)]
    assert sum(crossings) == len(set(slices)) - 1
    processes = [device.process_index for device in grid.flat]
    assert processes == sorted(processes)


def test_a_group_that_would_span_slices_is_refused():
    with pytest.raises(
        ValueError, match=r"does not divide the 4 devices of each of the 2 slices; p"
    ):
        layout(machine([0, 1]), 8)
    with pytest.raises(ValueError, match=r"possible: \[1, 2, 4\]"):
        layout(machine([0, 0, 1]), 12)


def test_processes_that_jump_between_slices_are_refused():
    with pytest.raises(ValueError, match="lie in the slices 0, 1, 0, 1: wanted all"):
        layout(machine([0, 1, 0, 1]), 4)


def test_hosts_of_gpus_are_no_slices():
    """JAX numbers them as such, but parameters may be shared over all of them."""
    grid = layout(machine([0, 1], platform="gpu"), 8)
    assert np.shape(grid) == (1, 8)
    assert layout(machine([0, 1, 0], platform="gpu"), 2).shape == (6, 2)


def test_devices_without_slices_are_one():
    """CPUs, and TPUs of an older JAX."""

    @dataclass(frozen=True)
    class Plain:
        process_index: int
        platform: str

    for platform in ("cpu", "tpu"):
        devices = [Plain(0, platform), Plain(1, platform)]
        assert layout(devices, 2).shape == (1, 2)
