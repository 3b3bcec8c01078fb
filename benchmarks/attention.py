# SPDX-License-Identifier: Apache-2.0
r"""Every attention of ViT-B/16's step with its gradient: ours, JAX's and torch's.

    python -m benchmarks.attention                # 16 pictures of 384 x 128 pixels
    python -m benchmarks.attention --shapes image text cross --batch 128    # on a GPU

"ours, written out" orders its axes so that no product has to transpose the scores
(`fmfa_jax.models.attention.softmax_mix`); "ours, cuDNN" is NVIDIA's kernel, as training
calls it. torch takes flash attention where it can.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import common
from fmfa_jax.machines.devices import has_cudnn_attention
from fmfa_jax.models import Compute
from fmfa_jax.models.attention import attend, fused_attend

HEAD = 64
LIMITS = {"float32": 1e-4, "bfloat16": 2e-2}
# Rows of the batch that are compared with float64, which is slow on a card.
_COMPARED = 2
_LEAST = 0.02


@dataclass(frozen=True)
class Shape:
    """Queries and keys of one attention, with heads of 64."""

    queries: int
    keys: int
    mask: str = "none"
    width: int = 768

    def __str__(self) -> str:
        causal = ", causal" * (self.mask == "causal")
        return f"{self.queries} on {self.keys}, {self.width // HEAD} heads{causal}"


SHAPES = {
    "image": Shape(193, 193),
    "image-even": Shape(194, 194),
    "image-256": Shape(256, 256),
    "text": Shape(77, 77, "causal"),
    "text-even": Shape(78, 78, "causal"),
    "cross": Shape(77, 193),
}


def gradient_of(attention: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of a weighted sum's gradient in query, key and value."""

    def total(query: Any, key: Any, value: Any, weight: Any) -> Any:
        mixed = attention(query, key, value)
        return jnp.sum(mixed.astype(jnp.float32) * weight.astype(jnp.float32))

    return jax.grad(total, argnums=(0, 1, 2))


def in_jax(attention: Callable[..., Any], arrays: Sequence[Any]) -> Callable[..., Any]:
    """Return a call of that gradient."""
    gradient = jax.jit(gradient_of(attention))
    return lambda: gradient(*arrays)


def jax_own(*given: jax.Array, mask: str) -> jax.Array:
    """Compute JAX's attention without cuDNN."""
    heads = [x.reshape(*x.shape[:2], -1, HEAD) for x in given]
    mixed = jax.nn.dot_product_attention(
        *heads, is_causal=mask == "causal", implementation="xla"
    )
    return mixed.reshape(given[0].shape)


def in_torch(
    arrays: Sequence[np.ndarray], mask: str, dtype: torch.dtype, device: str
) -> Callable[..., Any]:
    """Return a call of the same gradient with torch's fused attention."""
    tensors = [torch.from_numpy(x).to(device, dtype) for x in arrays]
    inputs = [x.requires_grad_() for x in tensors[:3]]
    wide = torch.promote_types(dtype, torch.float32)

    def call() -> Any:
        """Run torch's attention, forwards and backwards."""
        heads = [x.unflatten(2, (-1, HEAD)).transpose(1, 2) for x in inputs]
        mixed = torch.nn.functional.scaled_dot_product_attention(
            *heads, is_causal=mask == "causal"
        )
        total = (mixed.transpose(1, 2).flatten(2).to(wide) * tensors[3].to(wide)).sum()
        return torch.autograd.grad(total, inputs)

    return call


def candidates(mask: str, dtype: str, device: Any) -> dict[str, Callable[..., Any]]:
    """Return JAX's candidates on a device, by name."""
    found = {
        "ours, written out": functools.partial(
            attend, mask=mask, compute=Compute(dtype=dtype)
        ),
        "jax.nn.dot_product_attention": functools.partial(jax_own, mask=mask),
    }
    if dtype == "bfloat16" and has_cudnn_attention(device):
        found = {"ours, cuDNN": functools.partial(fused_attend, mask=mask)} | found
    return found


def compare(
    shape: Shape, dtype: str, *, batch: int, repeats: int
) -> dict[str, dict[str, Any]]:
    """Return a row of numbers for each candidate that did not fail."""
    rng = np.random.default_rng(0)
    drawn = [
        rng.normal(size=(batch, length, shape.width)).astype("float32")
        for length in (shape.queries, shape.keys, shape.keys, shape.queries)
    ]
    given = [jnp.asarray(x).astype(dtype) for x in drawn]
    known = candidates(shape.mask, dtype, jax.devices()[0])
    calls = {name: in_jax(attention, given) for name, attention in known.items()}
    calls["torch"] = in_torch(
        drawn, shape.mask, getattr(torch, dtype), common.torch_device()
    )
    times = common.alternate(calls, repeats=repeats, least=_LEAST)
    wanted = _rounded_in_float64(given, shape.mask)
    # Two products in the value, four in its gradient; all scores of causal ones count.
    work = 12 * batch * shape.queries * shape.keys * shape.width / 1e12
    rows = {}
    for name, taken in times.items():
        apart = max(
            float(np.linalg.norm(_array(a)[:_COMPARED] - b) / np.linalg.norm(b))
            for a, b in zip(calls[name](), wanted, strict=True)
        )
        ratio = times["torch"] / taken if "torch" in times else None
        row = {"ms": 1e3 * taken, "TFLOP/s": work / taken, "x torch": ratio}
        verdict = "near" if apart < LIMITS[dtype] else "FAR"
        row |= {"from float64's": apart, "verdict": verdict}
        rows[f"{name}, {dtype}, {shape}"] = row
    return rows


def _rounded_in_float64(given: Sequence[jax.Array], mask: str) -> list[np.ndarray]:
    """Return the gradients of the first rows, as they were rounded, in float64."""
    first = [np.asarray(x[:_COMPARED], np.float64) for x in given]
    return [_array(x) for x in in_torch(first, mask, torch.float64, "cpu")()]


def _array(x: Any) -> np.ndarray:
    if isinstance(x, torch.Tensor):
        return x.double().cpu().numpy()
    return np.asarray(x, np.float64)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of each shape; return whether one computes something else."""
    parser = common.parser(__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=["image"])
    options = parser.parse_args(arguments)
    far = False
    for shape in (SHAPES[name] for name in options.shapes):
        found: dict[str, dict[str, Any]] = {}
        for dtype in LIMITS:
            found |= compare(shape, dtype, batch=options.batch, repeats=options.repeats)
        far |= any(row["verdict"] == "FAR" for row in found.values())
        rows = [[name, *map(common.cell, row.values())] for name, row in found.items()]
        common.show(
            f"Attention of {options.batch} x {shape}, value and gradient",
            ("", *next(iter(found.values()))),
            rows,
        )
    return int(far)


if __name__ == "__main__":
    sys.exit(main())
