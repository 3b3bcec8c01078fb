# SPDX-License-Identifier: Apache-2.0
r"""Attention of ViT-B/16's image tower with its gradient: ours, JAX's and torch's.

    python -m benchmarks.attention                # 16 pictures of 384 x 128 pixels

On a GPU in bfloat16 ours IS JAX's with cuDNN; elsewhere it is written out so that no
product has to transpose the scores (`fmfa_jax.models.attention.softmax_mix`).
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import common
from fmfa_jax.models.attention import attend

TOKENS, WIDTH, HEAD = 193, 768, 64
LIMITS = {"float32": 1e-4, "bfloat16": 2e-2}


def own(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Compute our attention."""
    return attend(query, key, value, mask="none")


def jax_own(*given: jax.Array) -> jax.Array:
    """Compute JAX's attention."""
    heads = [x.reshape(*x.shape[:2], -1, HEAD) for x in given]
    return jax.nn.dot_product_attention(*heads).reshape(given[0].shape)


def in_jax(attention: Callable[..., Any], arrays: Sequence[Any]) -> Callable[..., Any]:
    """Return a call of a weighted sum's gradient in query, key and value."""

    def total(query: Any, key: Any, value: Any, weight: Any) -> Any:
        mixed = attention(query, key, value)
        return jnp.sum(mixed.astype(jnp.float32) * weight.astype(jnp.float32))

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    return lambda: gradient(*arrays)


def in_torch(arrays: Sequence[np.ndarray], dtype: str) -> Callable[..., Any]:
    """Return a call of the same gradient with torch's fused attention."""
    tensors = [torch.from_numpy(x).to(getattr(torch, dtype)) for x in arrays]
    inputs = [x.requires_grad_() for x in tensors[:3]]

    def call() -> Any:
        heads = [x.unflatten(2, (-1, HEAD)).transpose(1, 2) for x in inputs]
        mixed = torch.nn.functional.scaled_dot_product_attention(*heads)
        total = (mixed.transpose(1, 2).flatten(2).float() * tensors[3].float()).sum()
        return torch.autograd.grad(total, inputs)

    return call


def compare(dtype: str, *, batch: int, repeats: int) -> list[list[str]]:
    """Return the rows of one dtype."""
    rng = np.random.default_rng(0)
    drawn = [rng.normal(size=(batch, TOKENS, WIDTH)).astype("float32") for _ in "qkvw"]
    given = [jnp.asarray(x).astype(dtype) for x in drawn]
    calls = {
        f"ours, {dtype}": in_jax(own, given),
        f"jax.nn.dot_product_attention, {dtype}": in_jax(jax_own, given),
        f"torch, {dtype}": in_torch(drawn, dtype),
    }
    gradients = {name: [_array(x) for x in call()] for name, call in calls.items()}
    wanted = gradients[f"torch, {dtype}"]
    times = common.alternate(calls, repeats=repeats)
    rows = []
    for name, found in gradients.items():
        apart = max(
            float(np.linalg.norm(a - b) / np.linalg.norm(b))
            for a, b in zip(found, wanted, strict=True)
        )
        if apart > LIMITS[dtype]:
            raise AssertionError(f"{name} is {apart:.0e} from torch's gradients")
        ratio = times[f"torch, {dtype}"] / times[name]
        rows.append([name, f"{1e3 * times[name]:.0f}", f"{ratio:.2f}", f"{apart:.0e}"])
    return rows


def _array(x: Any) -> np.ndarray:
    return x.float().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, "f4")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = common.parser(__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args(arguments)
    rows = []
    for dtype in LIMITS:
        rows += compare(dtype, batch=given.batch, repeats=given.repeats)
    common.show(
        f"Attention of {given.batch} x {TOKENS} tokens, 12 heads, value and gradient",
        ("", "ms", "x torch", "from torch's"),
        rows,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
