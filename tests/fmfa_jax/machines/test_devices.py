# SPDX-License-Identifier: Apache-2.0
"""What devices are known to do, by the names and capabilities that JAX gives them."""

from types import SimpleNamespace

import jax
import pytest

from fmfa_jax.machines import devices


def card(platform, capability=None):
    """A device as far as JAX describes it; NVIDIA's and AMD's are both "gpu"."""
    described = {} if capability is None else {"compute_capability": capability}
    return SimpleNamespace(platform=platform, **described)


@pytest.mark.parametrize(
    ("platform", "capability", "bfloat16", "cudnn"),
    [
        ("gpu", "7.0", False, False),  # V100
        ("gpu", "7.5", False, False),  # T4
        ("gpu", "8.0", True, True),  # A100
        ("gpu", "8.9", True, True),  # L4
        ("gpu", "9.0", True, True),  # H100
        ("gpu", "12.0", True, True),  # RTX 5090
        ("gpu", "gfx906", False, False),  # MI50
        ("gpu", "gfx90a", True, False),  # MI250
        ("gpu", "gfx942", True, False),  # MI300
        ("gpu", "gfx1030", False, False),  # RX 6800
        ("gpu", "gfx1100", True, False),  # RX 7900
        ("tpu", None, True, False),
        ("cpu", None, False, False),
    ],
)
def test_what_a_device_can_do(platform, capability, bfloat16, cudnn):
    device = card(platform, capability)
    assert devices.has_bfloat16(device) == bfloat16
    assert devices.has_cudnn_attention(device) == cudnn


def test_this_host_is_a_cpu():
    assert not devices.has_bfloat16(jax.devices()[0])
    assert devices.capability(jax.devices()[0]) is None
