# SPDX-License-Identifier: Apache-2.0
"""How many floating-point operations a function takes, and what a device could do.

Model FLOPs utilisation (MFU) is `count_flops(step) / seconds / devices / peak_flops`
for the step of a model that recomputes nothing (`remat="none"`): recomputation is work
but no progress (Chowdhery et al. 2022, "PaLM", appendix B).
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

# Dense bfloat16 (not "with sparsity") by JAX's name of the device; the first match
# counts. NVIDIA: data sheets of A100, H100 (SXM, PCIe, NVL), H200, B200 (HGX) and L4,
# whose printed numbers with sparsity are halved. TPU: Google Cloud's pages "TPU v4" to
# "TPU7x", peak compute per chip, for generations whose chip is one device; a TPU7x is
# two. V100 and older have no bfloat16.
PEAKS = (
    (r"A100", 312e12),
    (r"H100.*PCIe", 756e12),
    (r"H100.*NVL", 835e12),
    (r"H100", 989e12),
    (r"H200", 989e12),
    (r"\bB200", 2250e12),
    (r"\bL4\b", 121e12),
    (r"TPU v4$", 275e12),
    (r"TPU v5 ?(lite|e)", 197e12),
    (r"TPU v5p?$", 459e12),
    (r"TPU v6 ?(lite|e)", 918e12),
    (r"TPU ?v?7x?$", 2307e12 / 2),
)

Wanted = Sequence[bool]


def peak_flops(device: Any) -> float | None:
    """Dense bfloat16 FLOPs a second of one device; None where no source states it.

    Args:
        device: One of `jax.devices()`; only its `device_kind` is read.

    Source: the manufacturers' data sheets, see `PEAKS`.
    """
    for pattern, peak in PEAKS:
        if re.search(pattern, device.device_kind):
            return peak
    return None


def count_flops(fn: Callable[..., Any], *args: Any) -> int:
    """FLOPs of the matrix products in `fn(*args)`, over all devices together.

    Two for each multiply-add of every product, convolution and cuDNN attention whose
    result is used, times the lengths of the scans around it. Element-wise work, a
    thousandth of a transformer's, is not counted. Of a `cond` the costlier branch
    counts; under `shard_map` all devices count. Recomputation by `jax.checkpoint`
    counts, that inside cuDNN's attention does not. Nothing is computed.

    Args:
        fn: Any function that JAX can trace, compiled or not.
        *args: Its arguments: arrays or `jax.ShapeDtypeStruct`s.

    Raises:
        ValueError: Products inside a while loop, whose number of rounds is unknown, or
            inside a Pallas kernel.
    """
    closed = jax.make_jaxpr(fn)(*args)
    return _count(closed.jaxpr, [True] * len(closed.jaxpr.outvars))[0]


def _count(jaxpr: Jaxpr, wanted: Wanted) -> tuple[int, list[bool]]:
    """FLOPs of the wanted outputs, and which inputs they need.

    Walks backwards, to leave out what nobody uses, such as the gradient with respect to
    pixels, as the compiler does.
    """
    outputs = zip(jaxpr.outvars, wanted, strict=True)
    needed = {v for v, want in outputs if want and not isinstance(v, Literal)}
    total = 0
    for equation in reversed(jaxpr.eqns):
        used = [v in needed for v in equation.outvars]
        if any(used):
            flops, inputs = _equation(equation, used)
            total += flops
            pairs = zip(equation.invars, inputs, strict=True)
            needed |= {v for v, need in pairs if need and not isinstance(v, Literal)}
    return total, [v in needed for v in jaxpr.invars]


def _equation(equation: JaxprEqn, wanted: Wanted) -> tuple[int, list[bool]]:
    """`_count` for one operation and everything nested in it."""
    name = equation.primitive.name
    if name in _PRODUCTS:
        return _PRODUCTS[name](equation), [True] * len(equation.invars)
    if name in _NESTED:
        return _NESTED[name](equation, wanted)
    inner = list(_jaxprs(equation.params.values()))
    if len(inner) == 1 and _fits(equation, inner[0]):
        return _count(inner[0], wanted)
    return _everything(inner), [True] * len(equation.invars)


def _jaxprs(values: Iterable[Any]) -> Iterable[Jaxpr]:
    """The programs among the parameters of an operation."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _jaxprs(value)
        elif isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value


def _fits(equation: JaxprEqn, inner: Jaxpr) -> bool:
    """Whether an operation's inputs and outputs are those of its program."""
    inputs, outputs = len(inner.invars), len(inner.outvars)
    return (inputs, outputs) == (len(equation.invars), len(equation.outvars))


def _everything(inner: Iterable[Jaxpr]) -> int:
    return sum(_count(jaxpr, [True] * len(jaxpr.outvars))[0] for jaxpr in inner)


def _scan(equation: JaxprEqn, wanted: Wanted) -> tuple[int, list[bool]]:
    """One round times the number of rounds; carries that a later round needs count."""
    (body,) = _jaxprs(equation.params.values())
    # How the parameters tell constants, carries and slices apart differs between
    # versions of JAX. What is sliced or stacked has an axis more outside.
    carries = _same_shapes(equation.outvars, body.outvars)
    first = _same_shapes(equation.invars, body.invars) - carries
    wanted = list(wanted)
    while True:
        flops, inputs = _count(body, wanted)
        carried = inputs[first : first + carries]
        grown = [a or b for a, b in zip(wanted, carried, strict=False)]
        if grown == wanted[:carries]:
            return equation.params["length"] * flops, inputs
        wanted[:carries] = grown


def _same_shapes(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    pairs = zip(outside, inside, strict=True)
    return sum(a.aval.shape == b.aval.shape for a, b in pairs)


def _cond(equation: JaxprEqn, wanted: Wanted) -> tuple[int, list[bool]]:
    branches = _jaxprs(equation.params["branches"])
    counts, inputs = zip(*(_count(b, wanted) for b in branches), strict=True)
    return max(counts), [True, *map(any, zip(*inputs, strict=True))]


def _shard_map(equation: JaxprEqn, wanted: Wanted) -> tuple[int, list[bool]]:
    """The program of one device, times the devices that run it."""
    params = equation.params
    flops, inputs = _count(params["jaxpr"], wanted)
    # The name of this parameter differs between versions of JAX.
    axes = next(params[name] for name in params if name.endswith("manual_axes"))
    return math.prod(params["mesh"].shape[axis] for axis in axes) * flops, inputs


def _uncountable(equation: JaxprEqn, wanted: Wanted) -> tuple[int, list[bool]]:
    """Programs with an unknown number of rounds, which must not contain products."""
    del wanted
    if _everything(_jaxprs(equation.params.values())):
        raise ValueError(
            f"count_flops met products inside {equation.primitive.name!r}, and how "
            f"often they run cannot be told from the program. Use lax.scan or a "
            f"lax.fori_loop with constant bounds."
        )
    return 0, [True] * len(equation.invars)


def _dot(equation: JaxprEqn) -> int:
    """2 m n k for each product of the batch."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, (out,) = equation.invars[0].aval, equation.outvars
    return 2 * math.prod(out.aval.shape) * math.prod(left.shape[i] for i in contracted)


def _convolution(equation: JaxprEqn) -> int:
    """Only what falls on existing pixels counts: padding and dilation are free."""
    left, right = (v.aval.shape for v in equation.invars)
    out = equation.outvars[0].aval.shape
    params = equation.params
    numbers = params["dimension_numbers"]
    # Axes 0 and 1 of each specification are batch and feature, the rest spatial.
    sides = [
        _taps(
            size=left[numbers.lhs_spec[axis]],
            kernel=right[numbers.rhs_spec[axis]],
            out=out[numbers.out_spec[axis]],
            stride=params["window_strides"][axis - 2],
            low=params["padding"][axis - 2][0],
            spread=params["lhs_dilation"][axis - 2],
            dilation=params["rhs_dilation"][axis - 2],
        )
        for axis in range(2, len(left))
    ]
    rows, features = (out[numbers.out_spec[i]] for i in (0, 1))
    return 2 * rows * features * right[numbers.rhs_spec[1]] * math.prod(sides)


def _taps(
    *,
    size: int,
    kernel: int,
    out: int,
    stride: int,
    low: int,
    spread: int,
    dilation: int,
) -> int:
    """Along one axis: pairs of output and kernel position that meet an input."""
    place = stride * np.arange(out)[:, None] + dilation * np.arange(kernel) - low
    inside = (place >= 0) & (place <= (size - 1) * spread) & (place % spread == 0)
    return int(inside.sum())


def _attention(equation: JaxprEqn, *, products: int) -> int:
    """CuDNN's fused attention; query [b,t,heads,w] and key [b,s,heads,w] come first."""
    query, key = (v.aval.shape for v in equation.invars[:2])
    return products * 2 * math.prod(query) * key[1]


_PRODUCTS = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    # Scores and mixture; then the gradients of query, key, value and probabilities.
    "dot_product_attention_fwd_wrapper": lambda e: _attention(e, products=2),
    "dot_product_attention_bwd_wrapper": lambda e: _attention(e, products=4),
}
_NESTED = {
    "scan": _scan,
    "cond": _cond,
    "shard_map": _shard_map,
    "while": _uncountable,
    "pallas_call": _uncountable,
}
