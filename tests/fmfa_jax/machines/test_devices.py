# SPDX-License-Identifier: Apache-2.0
"""What devices are known to do, by the names and capabilities that JAX gives them."""

from types import SimpleNamespace

import jax
import pytest

from configs import cuhk
from fmfa_jax import models
from fmfa_jax.machines import devices
from fmfa_jax.training import settings as door
from fmfa_jax.training.computing import UNROLLED, in_words


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


def test_the_first_lines_say_why_a_card_computes_in_float32():
    """Free notebooks lend a T4."""
    t4, h100 = (
        SimpleNamespace(platform="gpu", device_kind=kind, compute_capability=capability)
        for kind, capability in (("Tesla T4", "7.5"), ("NVIDIA H100", "9.0"))
    )
    settings = door.read(cuhk.get_config())
    said, unrolled = {}, {}
    for device in (t4, h100, jax.devices()[0]):
        model = settings.model.sized(device, vocab_size=49408, classes=3)
        said[device.device_kind] = in_words(model, device)
        unrolled[device.device_kind] = model.scan_unroll
    assert said["Tesla T4"].startswith("float32 towers, xla attention")
    assert said["Tesla T4"].endswith("; Tesla T4 has no bfloat16")
    assert said["NVIDIA H100"].startswith("bfloat16 towers, cudnn attention")
    assert "no bfloat16" not in said["NVIDIA H100"] + said["cpu"]
    assert unrolled == {"Tesla T4": 1, "NVIDIA H100": UNROLLED, "cpu": 1}
    sizes = {"vocab_size": 49408, "classes": 3}
    assert settings.model.sized(h100, **sizes, sharded=True).scan_unroll == 1
    encoders = models.without_training_heads(settings.model.sized(h100, **sizes))
    assert encoders.scan_unroll == 1


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_cudnn_is_refused_where_it_is_not(platform):
    config = cuhk.get_config().copy_and_resolve_references()
    config.model.update({"attention": "cudnn", "dtype": "bfloat16"})
    device = SimpleNamespace(platform=platform, device_kind=platform)
    model = door.read(config).model
    with pytest.raises(ValueError, match=r"cudnn: wanted .* take auto or xla"):
        model.sized(device, vocab_size=49408, classes=3)
