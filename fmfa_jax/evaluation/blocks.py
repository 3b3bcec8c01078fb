# SPDX-License-Identifier: Apache-2.0
"""Features as blocks of unit rows on devices, and the sizes of these blocks."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32

from data_pipeline.prefetch import cores
from fmfa_jax.losses.arithmetic import NO_LENGTH

GALLERY_BLOCK = 1024
"""Gallery items per matrix product where several devices may share the gallery; fixed,
so that products do not depend on their number."""
LARGEST_QUERY_BLOCK = 256
STRIP_BYTES = 512 * 2**20
"""Memory on a device for the similarities of query blocks with its gallery."""
UNROLL = 16
"""Gallery items per step of the counting loop; a gallery block is a multiple of it."""

_ROWS_AT_ONCE = 65536  # rows normalized at a time, to bound host memory


def unit_rows(
    features: Float[np.ndarray | Array, "n d"],
    *,
    name: str = "feature",
    rows: int | None = None,
) -> Float32[np.ndarray, "rows d"]:
    """Scale rows to length 1, in float32.

    A row of zeros stays zero, so its cosine with everything is 0.

    Args:
        features: Rows of any length.
        name: What they are, for the error.
        rows: Number of rows to return, padding with zeros.

    Raises:
        ValueError: A row has NaN or infinity.
    """
    values = np.asarray(features)
    out = _zeros(rows or len(values), values.shape[1])
    finite = np.ones(len(values), bool)
    for start in range(0, len(values), _ROWS_AT_ONCE):
        part = values[start : start + _ROWS_AT_ONCE].astype(np.float32)
        length = np.sqrt(np.einsum("nd,nd->n", part, part))
        fine = finite[start : start + len(part)] = np.isfinite(length)
        part /= np.where(fine, np.maximum(length, NO_LENGTH), 1.0)[:, None]
        out[start : start + len(part)] = part
    _check_finite(finite, name)
    return out


def gallery_blocks(
    gallery: Float[np.ndarray | Array, "g d"], block: int, mesh: Mesh | None
) -> tuple[Float32[Array, "blocks size d"], int]:
    """Put the gallery's unit rows on the devices, and count the rows of padding.

    Blocks are sharded over all axes of the mesh; padding is zeros.
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
    """Return zeros at an address that JAX on a CPU can use without a copy."""
    buffer = np.zeros(rows * width + 16, np.float32)
    skip = -buffer.ctypes.data % 64 // buffer.itemsize
    return buffer[skip : skip + rows * width].reshape(rows, width)


def replicate(value: np.ndarray, mesh: Mesh | None) -> Array | np.ndarray:
    """Put the whole array on every device of the mesh, if there is one."""
    if mesh is None:
        return value
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)


def fitting_queries(queries: int, gallery: int, mesh: Mesh | None = None) -> int:
    """Return the number of queries at a time whose strip fits in `STRIP_BYTES`."""
    fits = STRIP_BYTES * devices(mesh) // (4 * gallery)
    return max(8, min(LARGEST_QUERY_BLOCK, round_up(queries, 8), fits // 8 * 8))


def fitting_gallery(gallery: int, mesh: Mesh | None = None) -> int:
    """Return the number of gallery items per matrix product.

    One CPU multiplies them all, because it would have to copy a part. Its products do
    not depend on the number of rows.
    """
    return gallery if _one_cpu(mesh) else GALLERY_BLOCK


def blocks_at_once(size: int, gallery: int, mesh: Mesh | None = None) -> int:
    """Return how many blocks of `size` queries to work on at a time.

    A CPU multiplies on all cores but counts on one, so that other blocks keep the rest
    busy, as far as their strips fit in `STRIP_BYTES`. Several devices take one block
    after the other, in an order that all processes share.
    """
    if not _one_cpu(mesh):
        return 1
    return max(1, min(cores(), STRIP_BYTES // (4 * gallery * size)))


def _one_cpu(mesh: Mesh | None) -> bool:
    return devices(mesh) == 1 and jax.default_backend() == "cpu"


def devices(mesh: Mesh | None) -> int:
    """Return the number of devices that share the gallery."""
    return 1 if mesh is None else mesh.size


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple not less than the value."""
    return -(-value // multiple) * multiple


def _check_finite(finite: Bool[np.ndarray, "n"], name: str) -> None:
    bad = np.flatnonzero(~finite)
    if len(bad):
        raise ValueError(
            f"expected finite {name} values, but {len(bad)} of {len(finite)} rows have"
            f" NaN or infinity, first in row {bad[0]}: the model has diverged, or its"
            " weights do not fit; use an earlier checkpoint"
        )
