# SPDX-License-Identifier: Apache-2.0
"""The memory: one image row and one text row for every training pair.

A bank is a plain dict of arrays, so that it is checkpointed, donated and sharded like
the rest of the train state:

    image, text [rows, d]   raw features: float32, or bfloat16 as its bits in uint16
    inverse_norm [rows]     float32, of the image rows as stored; 0: not written
    written [rows]          whether the row holds a feature; others are never mined
    pairs []                int32, training pairs; the rows behind them are padding

Why bits: to write single rows, a CPU updates float32 and integers in place but widens a
whole bfloat16 array to float32 and back.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from fmfa_jax.losses.arithmetic import inverse_norm
from fmfa_jax.machines.mesh import over_shards

Bank = dict[str, Array]
AXIS = "data"  # the mesh axis that the rows are spread over
_STORAGE = {"float32": jnp.float32, "bfloat16": jnp.uint16}
DTYPES = tuple(_STORAGE)
# Device counts up to this power of two share one layout, so that a run can resume on
# another number of them.
ROW_MULTIPLE = 256

_SPECS = {
    "image": P(AXIS),
    "text": P(AXIS),
    "inverse_norm": P(AXIS),
    "written": P(AXIS),
    "pairs": P(),
}


def bank_shardings(mesh: Mesh) -> dict[str, NamedSharding]:
    """Shardings of a bank on `mesh`: rows over the axis "data"."""
    return {name: NamedSharding(mesh, spec) for name, spec in _SPECS.items()}


def bank_rows(pairs: int, *, mesh: Mesh | None = None) -> int:
    """Rows of a bank for `pairs` pairs, padding included."""
    shards = 1 if mesh is None else mesh.shape[AXIS]
    multiple = math.lcm(ROW_MULTIPLE, shards)
    return -(-pairs // multiple) * multiple


def init_bank(
    pairs: int, width: int, *, dtype: str = "float32", mesh: Mesh | None = None
) -> Bank:
    """An empty bank, created where it will live.

    Args:
        pairs: Training pairs.
        width: Joint width d.
        dtype: Storage of the rows, one of `DTYPES`; cosines are float32.
        mesh: Devices that share the rows over the axis "data"; None: one device.

    Raises:
        ValueError: No pairs, or an unknown storage type.
    """
    if pairs < 1:
        raise ValueError(f"a bank needs at least one training pair, got {pairs}")
    if dtype not in _STORAGE:
        raise ValueError(f"bank dtype: wanted one of {DTYPES}, got {dtype!r}")
    rows = bank_rows(pairs, mesh=mesh)

    def empty() -> Bank:
        """Make banks that nothing was written to."""
        return {
            "image": jnp.zeros((rows, width), _STORAGE[dtype]),
            "text": jnp.zeros((rows, width), _STORAGE[dtype]),
            "inverse_norm": jnp.zeros(rows, jnp.float32),
            "written": jnp.zeros(rows, bool),
            "pairs": jnp.int32(pairs),
        }

    shardings = None if mesh is None else bank_shardings(mesh)
    return jax.jit(empty, out_shardings=shardings)()


def as_float(rows: Array) -> Array:
    """Stored rows, or some of them, as float32."""
    if rows.dtype == jnp.uint16:
        rows = jax.lax.bitcast_convert_type(rows, jnp.bfloat16)
    return rows.astype(jnp.float32)


def as_stored(rows: Array, dtype: jnp.dtype) -> Array:
    """float32 rows as a bank of `dtype` stores them."""
    if dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(rows.astype(jnp.bfloat16), jnp.uint16)
    return rows.astype(dtype)


def first_row(rows: Array, mesh: Mesh | None) -> Array | int:
    """Global number of the first of this device's `rows`."""
    return 0 if mesh is None else jax.lax.axis_index(AXIS) * rows.shape[0]


def take_rows(
    bank: Bank, slot: Int[Array, "b k"], *, mesh: Mesh | None = None
) -> tuple[Float[Array, "b k d"], Float[Array, "b k d"]]:
    """The image and text rows at `slot` in float32, as constants.

    On several devices the owner of a row contributes it, the others zeros.
    """

    def take(image: Array, text: Array, slot: Array) -> tuple[Array, Array]:
        """Read rows from the shard that has them, for all shards."""
        local = slot - first_row(image, mesh)
        here = (local >= 0) & (local < image.shape[0])
        local = jnp.clip(local, 0, image.shape[0] - 1)
        rows = (as_float(image[local]), as_float(text[local]))
        if mesh is None:
            return rows
        return jax.lax.psum(
            tuple(jnp.where(here[..., None], part, 0.0) for part in rows), AXIS
        )

    state = jax.lax.stop_gradient((bank["image"], bank["text"]))
    specs = (P(AXIS), P(AXIS), P())
    return over_shards(take, mesh, specs, (P(), P()))(*state, slot)


def update_bank(
    bank: Bank,
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    index: Int[Array, " b"],
    *,
    ready: Bool[Array, ""] | bool,
    rate: float = 0.9,
    taken: Bool[Array, ""] | bool = True,
    mesh: Mesh | None = None,
) -> Bank:
    """Write the batch into its rows (11): B = rate * feature + (1 - rate) * B.

    While the bank is not `ready` (the first epoch), and where a row holds nothing yet,
    the feature is written as it is. A pair that does not enter (see `enters`) leaves
    its row as it was.

    Args:
        bank: The memory that this step's loss has read.
        image: Image features of the clean view. No gradient flows.
        text: Text features of the clean view.
        index: Row of each pair.
        ready: False in the first epoch.
        rate: Weight of the NEW feature.
        taken: False: nothing is written. Whether the gradient is finite is known only
            after the last use of the old bank, so a donated bank is updated in place;
            with an earlier answer XLA would copy all rows.
        mesh: See `init_bank`.
    """
    image, text = jax.lax.stop_gradient((image, text))
    writes = enters(bank, image, text, index) & taken

    def write(bank: Bank, image: Array, text: Array, index: Array, writes: Array):
        """Write rows to the shard that has them."""
        rows = bank["written"].shape[0]
        local = index - first_row(bank["written"], mesh)
        here = writes & (local >= 0) & (local < rows)
        near = jnp.clip(local, 0, rows - 1)
        # Beyond the end: such a write is dropped.
        target = jnp.where(here, local, rows)
        share = jnp.where(ready & bank["written"][near], rate, 1.0)[:, None]
        return _write_rows(bank, (image, text), near, target, share)

    bank_specs = {name: _SPECS[name] for name in bank}
    specs = (bank_specs, P(), P(), P(), P())
    write = over_shards(write, mesh, specs, bank_specs)
    return write(bank, image, text, index, writes)


def enters(
    bank: Bank,
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    index: Int[Array, " b"],
) -> Bool[Array, " b"]:
    """Which pairs of a batch may be written.

    Not those with a feature that is not finite, as stored, or with an index outside the
    training pairs, nor the second occurrence of an index.
    """
    storage = bank["image"].dtype
    finite = jnp.isfinite(as_float(as_stored(image, storage))).all(axis=1)
    finite &= jnp.isfinite(as_float(as_stored(text, storage))).all(axis=1)
    first = jnp.argmax(index[:, None] == index[None, :], axis=1) == jnp.arange(
        len(index)
    )
    return finite & first & (index >= 0) & (index < bank["pairs"])


def _write_rows(
    bank: Bank, features: tuple[Array, Array], near: Array, target: Array, share: Array
) -> Bank:
    """Blend the features with the rows at `near` and set the rows at `target`."""
    new = dict(bank)
    for name, feature in zip(("image", "text"), features, strict=True):
        old = as_float(bank[name][near])
        row = share * feature.astype(jnp.float32) + (1.0 - share) * old
        stored = as_stored(row, bank[name].dtype)
        new[name] = bank[name].at[target].set(stored, mode="drop")
        if name == "image":
            norms = bank["inverse_norm"].at[target]
            new["inverse_norm"] = norms.set(
                inverse_norm(as_float(stored))[:, 0], mode="drop"
            )
    new["written"] = bank["written"].at[target].set(True, mode="drop")
    return new
