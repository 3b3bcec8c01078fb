# SPDX-License-Identifier: Apache-2.0
"""Features as blocks of unit rows on the devices, and how large the blocks are."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32

GALLERY_BLOCK = 1024
"""Gallery items per matrix product; fixed, so that products do not depend on how
many devices share the gallery."""
LARGEST_QUERY_BLOCK = 256
STRIP_BYTES = 512 * 2**20
"""Room on a device for the similarities of a block of queries with its gallery."""
UNROLL = 16
"""Gallery items per step of the counting loop; a gallery block is a multiple of it."""

_ROWS_AT_ONCE = 65536  # rows normalised at a time on the host, to bound its memory


def unit_rows(
    features: Float[np.ndarray | Array, "n d"], *, name: str, rows: int | None = None
) -> Float32[np.ndarray, "rows d"]:
    """Return the rows in float32 with length 1, and zeros below them up to `rows`.

    A row of zeros stays zero: its cosine with everything is 0.

    Raises:
        ValueError: a row holds NaN or infinity.
    """
    values = np.asarray(features)
    out = _zeros(rows or len(values), values.shape[1])
    finite = np.ones(len(values), bool)
    for start in range(0, len(values), _ROWS_AT_ONCE):
        part = values[start : start + _ROWS_AT_ONCE].astype(np.float32)
        length = np.sqrt(np.einsum("nd,nd->n", part, part))
        fine = finite[start : start + len(part)] = np.isfinite(length)
        part /= np.where(fine, np.maximum(length, 1e-12), 1.0)[:, None]
        out[start : start + len(part)] = part
    refuse_non_finite(finite, name)
    return out


def gallery_blocks(
    gallery: Float[np.ndarray | Array, "g d"], block: int, mesh: Mesh | None
) -> tuple[Float32[Array, "blocks size d"], int]:
    """Put the unit rows of the gallery on the devices, and count the padding rows.

    The blocks are shared over all axes of the mesh; the padding is zeros.
    """
    size = round_up(min(block, len(gallery)), UNROLL)
    blocks = round_up(-(-len(gallery) // size), devices(mesh))
    host = unit_rows(gallery, name="gallery", rows=blocks * size)
    host = host.reshape(blocks, size, -1)
    pads = blocks * size - len(gallery)
    if mesh is None:
        return jax.device_put(host), pads
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback(host.shape, sharding, host.__getitem__), pads


def _zeros(rows: int, width: int) -> Float32[np.ndarray, "rows width"]:
    """Return zeros at an address that JAX takes on a CPU without copying them."""
    buffer = np.zeros(rows * width + 16, np.float32)
    skip = -buffer.ctypes.data % 64 // buffer.itemsize
    return buffer[skip : skip + rows * width].reshape(rows, width)


def replicate(value: np.ndarray, mesh: Mesh | None) -> Array | np.ndarray:
    """Put the whole array on every device of the mesh; without one, leave it."""
    if mesh is None:
        return value
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)


def fitting_queries(queries: int, gallery: int, mesh: Mesh | None = None) -> int:
    """Return how many queries go at a time, so that their strip fits `STRIP_BYTES`."""
    fits = STRIP_BYTES * devices(mesh) // (4 * gallery)
    return max(8, min(LARGEST_QUERY_BLOCK, round_up(queries, 8), fits // 8 * 8))


def devices(mesh: Mesh | None) -> int:
    """Return how many devices share the gallery."""
    return 1 if mesh is None else mesh.size


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple that is not below the value."""
    return -(-value // multiple) * multiple


def refuse_non_finite(finite: Bool[np.ndarray, "n"], name: str) -> None:
    """Raise a ValueError that counts the rows that are not finite, if there are any."""
    bad = np.flatnonzero(~finite)
    if len(bad):
        raise ValueError(
            f"wanted finite {name} values, but {len(bad)} of {len(finite)} rows hold"
            f" NaN or infinity, the first is row {bad[0]}: the model has diverged, or"
            " its weights do not fit; evaluate an earlier checkpoint"
        )
