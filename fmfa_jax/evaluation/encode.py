# SPDX-License-Identifier: Apache-2.0
"""Features of the gallery and queries of a split, in the order of the split."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, UInt8

Batch = Mapping[str, np.ndarray]

EncodeImages = Callable[
    [UInt8[np.ndarray | Array, "b h w 3"]], Float[np.ndarray | Array, "b d"]
]
EncodeTexts = Callable[
    [Int[np.ndarray | Array, "b l"]], Float[np.ndarray | Array, "b d"]
]


@dataclass(frozen=True)
class SplitFeatures:
    """Global features as the towers return them, not normalized, and their persons."""

    image: Float32[np.ndarray, "g d"]
    image_person: Int[np.ndarray, "g"]
    text: Float32[np.ndarray, "q d"]
    text_person: Int[np.ndarray, "q"]


def encode_split(
    encode_images: EncodeImages,
    encode_texts: EncodeTexts,
    gallery_batches: Iterable[Batch],
    query_batches: Iterable[Batch],
    *,
    mesh: Mesh | None = None,
) -> SplitFeatures:
    """Encode all images and captions; every process gets the features of all.

    Args:
        encode_images: Maps uint8 images to features; jitted by the caller.
        encode_texts: Maps token ids to features; jitted by the caller.
        gallery_batches: Dicts with image, person, image_id and valid: the rows of this
            process, as yielded by `data_pipeline.loader.gallery_batches`.
        query_batches: Dicts with tokens, person, pair and valid.
        mesh: Devices to spread the rows of all processes over, along all axes. None
            encodes the rows of each process on its default device.

    Raises:
        ValueError: The batches of all processes together do not have each row exactly
            once, or a batch does not divide evenly over the devices.
    """
    image, image_person = encode_rows(
        encode_images, gallery_batches, what="image", index="image_id", mesh=mesh
    )
    text, text_person = encode_rows(
        encode_texts, query_batches, what="tokens", index="pair", mesh=mesh
    )
    return SplitFeatures(image, image_person, text, text_person)


def encode_rows(
    encode: Callable[[np.ndarray | Array], np.ndarray | Array],
    batches: Iterable[Batch],
    *,
    what: str,
    index: str,
    mesh: Mesh | None = None,
) -> tuple[Float32[np.ndarray, "n d"], Int[np.ndarray, "n"]]:
    """Encode one side of a split; return its features and persons.

    Args:
        encode: See `encode_split`.
        batches: See `encode_split`.
        what: Key of the rows to encode, "image" or "tokens".
        index: Key of their numbers in the split, "image_id" or "pair".
        mesh: See `encode_split`.

    Raises:
        ValueError: See `encode_split`.
    """
    names = (index, "person", "valid")
    fetched: list[list[np.ndarray]] = []
    waiting = None
    for batch in batches:
        rows = {name: _put(batch[name], mesh) for name in (what, *names)}
        encoded = [encode(rows[what]), *(rows[name] for name in names)]
        # Fetch one batch late, so that the device works while the loader reads.
        if waiting is not None:
            fetched.append([_fetch(array) for array in waiting])
        waiting = encoded
    if waiting is None:
        raise ValueError(f"got no batch of {what!r}: the split is empty")
    fetched.append([_fetch(array) for array in waiting])
    return _in_order(*(np.concatenate(column) for column in zip(*fetched, strict=True)))


def _in_order(
    features: Float[np.ndarray, "n d"],
    ids: Int[np.ndarray, "n"],
    persons: Int[np.ndarray, "n"],
    valid: np.ndarray,
) -> tuple[Float32[np.ndarray, "m d"], Int[np.ndarray, "m"]]:
    """Drop padding and sort the remaining rows by their number in the split."""
    rows = np.flatnonzero(valid)
    rows = rows[np.argsort(ids[rows], kind="stable")]
    wrong = np.flatnonzero(ids[rows] != np.arange(len(rows)))
    if len(wrong):
        raise ValueError(
            f"expected each row of the split once, 0 to {len(rows) - 1}, but number"
            f" {wrong[0]} is row {ids[rows[wrong[0]]]}: the batches of the processes"
            " overlap or omit rows"
        )
    return features[rows].astype(np.float32), persons[rows]


def _put(rows: np.ndarray, mesh: Mesh | None) -> np.ndarray | Array:
    if mesh is None:
        return rows
    share, rest = divmod(mesh.size, jax.process_count())
    if rest or len(rows) % share:
        near = max(1, len(rows) // share) * share
        raise ValueError(
            f"an evaluation batch of {len(rows)} rows per process does not divide over"
            f" its {share} devices; {near} does"
        )
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_process_local_data(sharding, rows)


def _fetch(array: np.ndarray | Array) -> np.ndarray:
    """Return the rows of all processes on the host."""
    if jax.process_count() > 1:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
