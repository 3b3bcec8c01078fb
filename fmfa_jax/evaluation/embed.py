# SPDX-License-Identifier: Apache-2.0
"""The features of a split's gallery and queries, in the split's own order."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, UInt8

Batch = Mapping[str, np.ndarray]

ImageEncoder = Callable[
    [UInt8[np.ndarray | Array, "b h w 3"]], Float[np.ndarray | Array, "b d"]
]
TextEncoder = Callable[
    [Int[np.ndarray | Array, "b l"]], Float[np.ndarray | Array, "b d"]
]


@dataclass(frozen=True)
class Embeddings:
    """Global features as the towers gave them (any length) and the persons."""

    image: Float32[np.ndarray, "g d"]
    image_person: Int[np.ndarray, "g"]
    text: Float32[np.ndarray, "q d"]
    text_person: Int[np.ndarray, "q"]


def embed(
    encode_image: ImageEncoder,
    encode_text: TextEncoder,
    gallery_batches: Iterable[Batch],
    query_batches: Iterable[Batch],
    *,
    mesh: Mesh | None = None,
) -> Embeddings:
    """Encode all pictures and captions; every process gets the features of all.

    Args:
        encode_image: uint8 pictures -> features; jitted by the caller.
        encode_text: token ids -> features.
        gallery_batches: dicts with image, person, image_id, valid: this process's rows,
            as `data_pipeline.loader.gallery_batches` yields them.
        query_batches: dicts with tokens, person, pair, valid.
        mesh: put the rows of all processes on its devices, over all its axes; without
            one each process encodes its own rows on its default device.

    Raises:
        ValueError: the batches of all processes do not hold each row once; or a batch
            does not divide over the devices.
    """
    image, image_person = _embed(
        encode_image, gallery_batches, what="image", index="image_id", mesh=mesh
    )
    text, text_person = _embed(
        encode_text, query_batches, what="tokens", index="pair", mesh=mesh
    )
    return Embeddings(image, image_person, text, text_person)


def _embed(
    encode: Callable[[np.ndarray | Array], np.ndarray | Array],
    batches: Iterable[Batch],
    *,
    what: str,
    index: str,
    mesh: Mesh | None,
) -> tuple[Float32[np.ndarray, "n d"], Int[np.ndarray, "n"]]:
    names = (index, "person", "valid")
    fetched: list[list[np.ndarray]] = []
    waiting = None
    for batch in batches:
        rows = {name: _put(batch[name], mesh) for name in (what, *names)}
        encoded = [encode(rows[what]), *(rows[name] for name in names)]
        # One batch behind: the device works while the loader reads the next.
        if waiting is not None:
            fetched.append([_fetch(array) for array in waiting])
        waiting = encoded
    if waiting is None:
        raise ValueError(f"no batch of {what!r} came: the split is empty")
    fetched.append([_fetch(array) for array in waiting])
    return _in_order(*(np.concatenate(column) for column in zip(*fetched, strict=True)))


def _in_order(
    features: Float[np.ndarray, "n d"],
    ids: Int[np.ndarray, "n"],
    persons: Int[np.ndarray, "n"],
    valid: np.ndarray,
) -> tuple[Float32[np.ndarray, "m d"], Int[np.ndarray, "m"]]:
    """Drop the padded rows and sort the others by their number in the split."""
    rows = np.flatnonzero(valid)
    rows = rows[np.argsort(ids[rows], kind="stable")]
    wrong = np.flatnonzero(ids[rows] != np.arange(len(rows)))
    if len(wrong):
        raise ValueError(
            f"wanted each row of the split once, 0 to {len(rows) - 1}, but number"
            f" {wrong[0]} is row {ids[rows[wrong[0]]]}: the processes' batches overlap"
            " or leave rows out"
        )
    return features[rows].astype(np.float32), persons[rows]


def _put(rows: np.ndarray, mesh: Mesh | None) -> np.ndarray | Array:
    if mesh is None:
        return rows
    share, rest = divmod(mesh.size, jax.process_count())
    if rest or len(rows) % share:
        near = max(1, len(rows) // share) * share
        raise ValueError(
            f"an evaluation batch of {len(rows)} rows a process does not divide over"
            f" its {share} devices; {near} does"
        )
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_process_local_data(sharding, rows)


def _fetch(array: np.ndarray | Array) -> np.ndarray:
    """Return the rows of all processes on the host."""
    if jax.process_count() > 1:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
