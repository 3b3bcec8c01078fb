# SPDX-License-Identifier: Apache-2.0
"""FLOPs counted from programs, against counts by hand, by XLA and by torch."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.extend.core import Primitive
from jax.sharding import PartitionSpec
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import fmfa
from fmfa_jax import models
from fmfa_jax.machines.flops import count_flops, peak_flops
from fmfa_jax.machines.mesh import make_mesh
from fmfa_jax.models.config import Compute
from fmfa_jax.models.layers import Blocks


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def by_xla(fn, *args):
    """What XLA counts before it optimises: also element-wise work, and loops once."""
    return jax.jit(fn).lower(*args).cost_analysis()["flops"]


# 2 * 3 * 4 * 5 of the product that most of these programs are made of.
ONE = 120
X, W = shape(3, 4), shape(4, 5)
SQUARE = shape(4, 4)
ROUND = 2 * 3 * 4 * 4


def rounds(x, w, length):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=length)[0]


@jax.custom_vjp
def doubled(x, w):
    return x @ w


doubled.defvjp(
    lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g)
)

BY_HAND = {
    "a product": (lambda x, w: x @ w, (X, W), ONE),
    "a batch of products": (jnp.matmul, (shape(7, 3, 4), shape(7, 4, 5)), 7 * ONE),
    "two contracted axes": (
        lambda x, y: jnp.einsum("bli,blo->io", x, y),
        (shape(2, 3, 4), shape(2, 3, 5)),
        2 * ONE,
    ),
    "under jit": (jax.jit(lambda x, w: x @ w), (X, W), ONE),
    "under vmap": (
        jax.vmap(lambda x, w: x @ w, (0, None)),
        (shape(7, 3, 4), W),
        7 * ONE,
    ),
    "element-wise work": (lambda x: jnp.exp(x) + x, (X,), 0),
    "a result that nobody uses": (lambda x, w: (x @ w, x)[1], (X, W), 0),
    "a scan": (lambda x, w: rounds(x, w, 6), (X, SQUARE), 6 * ROUND),
    "a scan in a scan": (
        lambda x, w: jax.lax.scan(lambda x, _: (rounds(x, w, 6), None), x, length=5)[0],
        (X, SQUARE),
        30 * ROUND,
    ),
    "a loop with constant bounds": (
        lambda x, w: jax.lax.fori_loop(2, 9, lambda _, x: x @ w, x),
        (X, SQUARE),
        7 * ROUND,
    ),
    "a while loop without products": (
        lambda x, w: jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x + 1, x) @ w,
        (X, W),
        ONE,
    ),
    "a carry that only a later round uses": (
        # The first product enters the result by way of the second carry.
        lambda x, w: jax.lax.scan(
            lambda c, _: ((c[0] @ w, c[0], c[0] @ w @ w), None), (x, x, x), length=6
        )[0][1],
        (X, SQUARE),
        6 * ROUND,
    ),
    "the costlier branch": (
        lambda x, w: jax.lax.cond(
            x.sum() > 0, lambda: x @ w, lambda: x @ w + 2 * x @ w
        ),
        (X, W),
        2 * ONE,
    ),
    "both gradients": (
        jax.grad(lambda x, w: jnp.sum(x @ w), argnums=(0, 1)),
        (X, W),
        2 * ONE,
    ),
    "one gradient, without the value": (
        jax.grad(lambda w, x: jnp.sum(doubled(x, w))),
        (W, X),
        ONE,
    ),
    "a value and both gradients by a rule of one's own": (
        jax.value_and_grad(lambda x, w: jnp.sum(doubled(x, w)), argnums=(0, 1)),
        (X, W),
        3 * ONE,
    ),
    "what is computed twice": (
        # sin needs its input again: once forwards, once more, and two gradients.
        jax.value_and_grad(
            jax.checkpoint(lambda x, w: jnp.sum(jnp.sin(x @ w))), argnums=(0, 1)
        ),
        (X, W),
        4 * ONE,
    ),
    "a convolution without padding": (
        lambda x, w: jax.lax.conv(x, w, (2, 2), "VALID"),
        (shape(2, 3, 8, 8), shape(5, 3, 4, 4)),
        2 * 2 * 3 * 3 * 5 * 3 * 4 * 4,
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_counts_by_hand(name):
    fn, args, expected = BY_HAND[name]
    assert count_flops(fn, *args) == expected


def test_arrays_and_shapes_count_alike():
    arrays = (np.ones((3, 4), np.float32), jnp.ones((4, 5)))
    assert count_flops(jnp.matmul, *arrays) == ONE


def test_a_constant_result_takes_none():
    x = jnp.ones((3, 3))
    assert count_flops(lambda x: (x @ x, 1.0), x) == 2 * 3**3


def test_a_loop_of_unknown_length_is_refused():
    def unknown(x, w):
        return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ w, x)

    with pytest.raises(ValueError, match=r"products inside 'while'.*lax\.scan"):
        count_flops(unknown, X, SQUARE)


def test_every_device_of_a_shard_map_counts():
    mesh = make_mesh(devices=jax.devices()[:4])
    rows, whole = PartitionSpec(("data", "fsdp")), PartitionSpec()

    def gathered(x, w):
        return jax.lax.all_gather(x, "data", tiled=True) @ w

    spread = jax.shard_map(gathered, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    # Each of four devices multiplies all of the eight rows.
    assert count_flops(spread, shape(8, 4), W) == 4 * 2 * 8 * 4 * 5


@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (1, 1), "padding": "SAME"},
        {"window_strides": (2, 3), "padding": ((0, 3), (2, 1))},
        {"window_strides": (1, 1), "padding": "VALID", "rhs_dilation": (2, 1)},
        {"window_strides": (1, 2), "padding": "SAME", "feature_group_count": 2},
    ],
)
def test_convolutions_and_their_gradients_as_xla_counts_them(options):
    groups = options.get("feature_group_count", 1)
    x, w = shape(2, 4, 9, 10), shape(6, 4 // groups, 3, 4)

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, **options)

    out = jax.eval_shape(convolve, x, w)
    assert count_flops(convolve, x, w) == by_xla(convolve, x, w)
    for pull in (0, 1):

        def gradient(x, w, g, pull=pull):
            return jax.vjp(convolve, x, w)[1](g)[pull]

        counted = count_flops(gradient, x, w, out)
        # The gradient meets padding where the convolution met it.
        assert counted == count_flops(convolve, x, w)
        assert counted == by_xla(gradient, x, w, out)


def tower(width, layers, **compute):
    blocks = Blocks(width, layers, compute=Compute(**compute))
    return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, blocks))


def scanned(blocks, x):
    return jnp.sum(blocks(x, mask="none"))


def unrolled(blocks, x):
    for layer in range(blocks.ln_1.scale[...].shape[0]):
        x = jax.tree.map(lambda leaf, i=layer: leaf[i], blocks).one(x, mask="none")
    return jnp.sum(x)


def products_of_a_tower(rows, tokens, width, layers):
    """Twelve width x width matrices on each token; scores and mixtures."""
    linear = 2 * tokens * 12 * width**2
    return rows * layers * (linear + 2 * 2 * tokens**2 * width)


def test_a_tower_forwards_and_backwards():
    blocks, x = tower(128, 3), shape(2, 24, 128)
    forward = products_of_a_tower(2, 24, 128, 3)
    gradient = jax.value_and_grad(scanned, argnums=(0, 1))
    assert count_flops(scanned, blocks, x) == forward
    assert count_flops(gradient, blocks, x) == 3 * forward
    assert count_flops(jax.value_and_grad(unrolled), blocks, x) == 3 * forward


@pytest.mark.parametrize("remat", ["elementwise", "full"])
def test_what_remat_computes_again(remat):
    blocks, x = tower(128, 3, remat=remat), shape(2, 24, 128)
    counted = count_flops(jax.value_and_grad(scanned, argnums=(0, 1)), blocks, x)
    once = products_of_a_tower(2, 24, 128, 3)
    # Full: all products but each block's last, whose result no gradient needs.
    last = 3 * 2 * 2 * 24 * 4 * 128**2
    assert counted == (3 * once if remat == "elementwise" else 4 * once - last)


@pytest.mark.parametrize("way", ["forward", "gradient"])
def test_a_tower_as_xla_counts_it(way):
    blocks, x = tower(128, 2), shape(2, 24, 128)
    slow, fast = unrolled, scanned
    if way == "gradient":
        slow, fast = jax.value_and_grad(unrolled), jax.value_and_grad(scanned)
    counted = count_flops(fast, blocks, x)
    # XLA also counts norms, softmax and activations, which are little.
    assert counted < by_xla(slow, blocks, x) < 1.05 * counted
    assert by_xla(fast, blocks, x) < 0.7 * counted, "XLA counts a scan's body once"


def by_torch(module, x, **options):
    """Value and gradient of a module as torch's own counter sees it."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        module(x, **options).sum().backward()
    return counter.get_total_flops()


def test_a_tower_as_torch_counts_it():
    with torch.device("meta"):
        peer = fmfa.Transformer(128, 3)
        rows = torch.zeros(2, 24, 128, requires_grad=True)
    gradient = jax.value_and_grad(scanned, argnums=(0, 1))
    counted = count_flops(gradient, tower(128, 3), shape(2, 24, 128))
    assert counted == by_torch(peer, rows, mask="none")


def test_an_image_tower_as_torch_counts_it():
    """Its patches are a convolution there, and pixels need no gradient in either."""
    config = models.ModelConfig(
        **{**vars(models.PRESETS["demo"]), "classes": 5, "irr_layers": 1}
    )
    names = fmfa.Sizes.__dataclass_fields__
    with torch.device("meta"):
        peer = fmfa.ImageTower(fmfa.Sizes(**{n: getattr(config, n) for n in names}))
        pixels = torch.zeros(2, 3, *config.image_size)

    def summed(params, pixels):
        return models.bind(config, params).encode_images(pixels).sum()

    given = models.param_shapes(config), shape(2, *config.image_size, 3)
    counted = count_flops(jax.value_and_grad(summed), *given)
    assert counted == by_torch(peer, pixels)


def fused(name, outputs):
    """A stand-in for cuDNN's primitive, which needs the library even to be traced."""
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_abstract_eval(lambda *operands: operands[:outputs])
    return lambda *operands: primitive.bind(*operands)


def test_cudnn_attention_counts_as_its_products():
    query, key = shape(2, 5, 3, 64), shape(2, 7, 3, 64)
    product = 2 * 2 * 3 * 5 * 7 * 64
    forward = fused("dot_product_attention_fwd_wrapper", 1)
    backward = fused("dot_product_attention_bwd_wrapper", 3)
    assert count_flops(forward, query, key, key) == 2 * product
    assert count_flops(backward, query, key, key) == 4 * product
    plain = jax.nn.dot_product_attention
    assert count_flops(plain, query, key, key) == 2 * product


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA L4", 121),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU v6e", 918),
        ("TPU7x", 1153.5),
    ],
)
def test_peaks_by_the_names_that_jax_gives(kind, teraflops):
    assert peak_flops(device(kind)) == teraflops * 1e12


@pytest.mark.parametrize(
    "kind", ["cpu", "NVIDIA L40S", "Tesla V100-SXM2-16GB", "TPU v4 lite", "TPU v3"]
)
def test_a_device_without_a_sourced_peak_has_none(kind):
    assert peak_flops(device(kind)) is None


def device(kind):
    return types.SimpleNamespace(device_kind=kind)


def test_this_machine_has_no_peak():
    assert peak_flops(jax.devices("cpu")[0]) is None
