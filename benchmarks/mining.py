# SPDX-License-Identifier: Apache-2.0
r"""Mining links in the memory: blocks with a running top-k versus a dense top-k.

    python -m benchmarks.mining                     # 68k rows (CUHK-PEDES) and 1M rows
    python -m benchmarks.mining --rows 68000 --dtype bfloat16

Batch 64, width 512, 3 links. "Ours, mining" is the search alone; "ours, whole step"
adds the loss with its gradient and the in-place update of both banks. The dense
candidates multiply the batch with all rows and take one top-k, as the official code
does. Each candidate runs in its own process with its own peak of memory, and the
processes take turns.
"""

import functools
from collections.abc import Callable
from typing import Any

from benchmarks import common

Bank = dict[str, Any]
Call = Callable[[], Any]

BATCH, WIDTH, LINKS = 64, 512, 3
ROWS = (68_000, 1_000_000)
_FILLED_AT_ONCE = 4000
_CALLS = 5
_TITLES = {
    "mining": "ours, mining",
    "step": "ours, whole step",
    "dense": "JAX, dense top-k",
    "torch": "torch, dense top-k",
}


def main() -> None:
    """Print one table for each number of rows."""
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=list(ROWS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--block", type=int, help="rows compared at once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=_TITLES, help="one candidate, as JSON")
    options = parser.parse_args()
    for rows in options.rows:
        if options.only:
            common.answer(measure(options.only, rows, options.dtype, options.block))
            continue
        flags = ["--rows", str(rows), *common.flags(options, "dtype", "block")]
        found = common.children(
            "benchmarks.mining", _TITLES, *flags, repeats=options.repeats
        )
        _compare(rows, options.dtype, found)


def measure(name: str, rows: int, dtype: str, block: int | None) -> dict[str, float]:
    """Return a call's times, the banks' size, and the peak before they were made."""
    if name == "torch":
        call, numbers = _torch(rows)
    else:
        call, numbers = _jax(name, rows, dtype, block)
    call()
    return numbers | common.timed(call, _CALLS)


def _torch(rows: int) -> tuple[Call, dict[str, float]]:
    """Return the official code's search, over rows that are already normalised."""
    import torch

    base = common.peak_gb()
    bank = torch.randn(2, rows, WIDTH, device=common.torch_device())
    images = bank[0]
    images /= torch.linalg.vector_norm(images, dim=1, keepdim=True)
    anchors = images[:BATCH].clone()
    numbers = {"base_gb": base, "bank_gb": bank.numel() * 4 / 1e9}
    return lambda: torch.topk(anchors @ images.T, LINKS + 1).values, numbers


def _jax(
    name: str, rows: int, dtype: str, block: int | None
) -> tuple[Call, dict[str, float]]:
    import jax
    import jax.numpy as jnp

    from fmfa_jax.methods.weak.memory import take_rows
    from fmfa_jax.methods.weak.mining import mine

    jax.block_until_ready(jax.random.normal(jax.random.key(0), (8, WIDTH)))
    base = common.peak_gb()
    bank = _filled(rows, dtype)
    size = sum(part.nbytes for part in bank.values()) / 1e9
    index = jnp.arange(BATCH, dtype=jnp.int32)
    image = take_rows(bank, index[:, None])[0][:, 0] + 0.1
    if name == "step":
        call = _whole_step(bank, image, index, block)
    elif name == "dense":
        call = functools.partial(jax.jit(_dense), bank, image)
    else:
        search = functools.partial(mine, links=LINKS, exclude="self", block=block)
        call = functools.partial(jax.jit(search), bank, image, index)
    return call, {"base_gb": base, "bank_gb": size}


def _dense(bank: Bank, image: Any) -> Any:
    """Compute the whole similarity matrix and one top-k."""
    import jax
    import jax.numpy as jnp

    from fmfa_jax.methods.weak.memory import as_float

    products = jnp.matmul(image, as_float(bank["image"]).T, precision="highest")
    return tuple(jax.lax.top_k(products * bank["inverse_norm"], LINKS + 1))


def _whole_step(bank: Bank, image: Any, index: Any, block: int | None) -> Call:
    """Return all four losses, their gradient, and the update of the donated bank."""
    import jax
    import jax.numpy as jnp

    from fmfa_jax.methods.weak import Recipe, WeakMethod
    from fmfa_jax.methods.weak.recipe import TERMS
    from fmfa_jax.models import PRESETS

    recipe = Recipe(losses=dict.fromkeys(TERMS, 1.0))
    method = WeakMethod(PRESETS["vit-b-16"], recipe, block=block)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(bank: Bank, image: Any) -> tuple[Bank, Any]:
        """Mine, take the loss's gradient, and write to the bank."""
        state = {"memory": bank, "step": jnp.int32(0)}

        def loss(image: Any) -> Any:
            """Return the weak method's loss of these images."""
            features = dict.fromkeys(
                ("image", "text", "image_view", "text_view"), image
            )
            return method.compare(features, {}, {"pair": index}, state)

        (_, measured), gradient = jax.value_and_grad(loss, has_aux=True)(image)
        finite = jnp.isfinite(gradient).all()
        return method.advance(state, measured.update, finite)["memory"], gradient

    state = {"bank": bank}

    def call() -> Any:
        state["bank"], gradient = step(state["bank"], image)
        return gradient, state["bank"]["pairs"]

    return call


def _filled(rows: int, dtype: str) -> Bank:
    """Return a bank of random rows, written in place."""
    import jax
    import jax.numpy as jnp

    from fmfa_jax.methods.weak.memory import init_bank, update_bank

    def write(number: Any, bank: Bank) -> Bank:
        """Fill one block of rows with random features."""
        key = jax.random.fold_in(jax.random.key(0), number)
        features = jax.random.normal(key, (_FILLED_AT_ONCE, WIDTH))
        index = number * _FILLED_AT_ONCE + jnp.arange(_FILLED_AT_ONCE)
        return update_bank(bank, features, features, index, ready=False)

    @functools.partial(jax.jit, donate_argnums=0)
    def fill(bank: Bank) -> Bank:
        return jax.lax.fori_loop(0, -(-rows // _FILLED_AT_ONCE), write, bank)

    return fill(init_bank(rows, WIDTH, dtype=dtype))


def _compare(rows: int, dtype: str, found: dict[str, dict[str, float]]) -> None:
    mine = found["mining"]
    lines = [
        (
            _TITLES[name],
            f"{values['seconds']:.3f}",
            f"{values['seconds'] / mine['seconds']:.2f}",
            f"{values['cpu_seconds']:.3f}",
            f"{values['cpu_seconds'] / mine['cpu_seconds']:.2f}",
            f"{values['peak_gb']:.2f}",
            f"{values['base_gb']:.2f}",
            f"{(values['peak_gb'] - values['base_gb']) / values['bank_gb']:.2f}",
        )
        for name, values in found.items()
    ]
    common.show(
        f"Mining, batch {BATCH} x {rows} rows x {WIDTH}, {dtype}",
        (
            "",
            "seconds",
            "x ours",
            "CPU s",
            "x ours",
            "peak GB",
            "before",
            "peak / bank",
        ),
        lines,
        notes=[
            f"Both banks: {found['step']['bank_gb']:.2f} GB (10^9 bytes)."
            " Peak: peak memory of the process; before: the same before the banks were"
            " made; peak / bank: the difference, divided by the size of both banks."
            " torch is float32 and its rows are already normalised."
        ],
    )


if __name__ == "__main__":
    main()
