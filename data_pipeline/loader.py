# SPDX-License-Identifier: Apache-2.0
"""From splits to batches of plain arrays: this process's rows of every global batch.

Nothing random happens here: a training batch is a pure function of (seed, step) and the
files, an evaluation batch of its number. Pictures leave as uint8.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_pipeline.bad_images import BadImages
from data_pipeline.captions import Captions
from data_pipeline.image_cache import CACHES, open_cache
from data_pipeline.order import batch_order
from data_pipeline.pictures import Pictures, StepPictures
from data_pipeline.prefetch import Batch, Draft, map_steps
from data_pipeline.records import Split
from data_pipeline.tokenizer import Tokenizer

__all__ = [
    "CACHES",
    "NOTHING",
    "BadImages",
    "Material",
    "gallery_batches",
    "query_batches",
    "train_batches",
]

NOTHING = -1
"""Person, image id and pair of a padded row in an evaluation batch."""


@dataclass(frozen=True)
class Material:
    """What all passes over the training pairs of a split draw from, opened once.

    Attributes:
        pictures: Its pictures, and the cache that they are kept in.
        captions: Its captions, encoded.
    """

    pictures: Pictures
    captions: Captions

    @classmethod
    def of(
        cls,
        split: Split,
        *,
        tokenizer: Tokenizer,
        image_size: tuple[int, int],
        context_length: int,
        cache: str = "none",
        cache_dir: str | None = None,
        caption_buckets: tuple[int, ...] = (),
    ) -> "Material":
        """Open the cache and encode the captions.

        Args:
            split: The pictures and captions.
            tokenizer: Tokenizer for the captions.
            image_size: (height, width) of the pictures.
            context_length: Number of text positions, l.
            cache: Where decoded pictures are cached, one of `CACHES`.
            cache_dir: Folder of the disk cache; None for the user's cache folder.
            caption_buckets: Lengths below l; a batch is cut to the smallest that fits.

        Raises:
            ValueError: An unknown cache, or buckets that do not fit.
            OSError: The cache does not fit.
        """
        pictures = Pictures(
            split, image_size, open_cache(cache, split, image_size, cache_dir)
        )
        encoded = tokenizer.encode(split.captions, context_length)
        return cls(pictures, Captions.of(encoded, caption_buckets))


def train_batches(
    material: Material,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    bad_images: BadImages,
    process_index: int = 0,
    process_count: int = 1,
    sampler: str = "shuffle",
    per_identity: int = 4,
) -> Iterator[Batch]:
    """Return the training batches of the steps [start_step, stop_step).

    Yields dicts of this process's rows, b = batch_size / process_count: image uint8
    [b,h,w,3], tokens int32 [b,l], person int32 [b] (contiguous label, -1 unknown),
    image_id int32 [b], pair int32 [b], valid bool [b] (all True).

    A picture that cannot be read is recorded in `bad_images`, and its row is filled
    with another pair, which depends only on (seed, step, position).

    Args:
        material: The pictures and captions; several passes at once may share it.
        batch_size: Size of the global batch, over all processes.
        seed: Seed of the order.
        start_step: The first step.
        stop_step: The step after the last.
        bad_images: Collects the unreadable pictures.
        process_index: Index of this process.
        process_count: Number of processes that share a global batch.
        sampler: One of `order.SAMPLERS`; "identity" draws P identities x K pairs.
        per_identity: Number of pairs per identity, K.

    Raises:
        ValueError: At once, if the settings do not fit the data or each other.
        TooManyBadImagesError: While iterating, above 1 % of unreadable pictures.
    """
    rows = _process_rows(batch_size, process_index, process_count)
    pictures, captions = material.pictures, material.captions
    ids = batch_order(
        sampler,
        pictures.split.pair_labels,
        seed=seed,
        batch_size=batch_size,
        per_identity=per_identity,
    )

    def begin(step: int) -> Draft:
        """Plan the batch of a step: its pairs and how it is read."""
        batch = ids(step)
        fitting = captions.lengths <= captions.cut(batch)
        reader = StepPictures(pictures, seed, step, batch, fitting, bad_images)
        return _train_draft(reader, captions, rows)

    sizes = _sizes(rows, pictures.image_size)
    return map_steps(begin, start=start_step, stop=stop_step, **sizes)


def _train_draft(reader: StepPictures, captions: Captions, rows: slice) -> Draft:
    """Return the draft of this process's rows of a training batch."""
    pictures, pairs = reader.pictures, reader.batch[rows].copy()
    image = np.empty((len(pairs), *pictures.image_size, 3), np.uint8)
    length = captions.cut(reader.batch)

    def fill(part: slice) -> None:
        pairs[part] = reader.read(_shifted(part, rows.start), image[part])

    def finish() -> Batch:
        tokens = captions.tokens[pairs, :length]
        return {"image": image, "tokens": tokens} | _about_pairs(pictures.split, pairs)

    return Draft(fill, finish)


def _about_pairs(split: Split, pairs: np.ndarray) -> Batch:
    return {
        "person": split.pair_labels[pairs],
        "image_id": split.pair_images[pairs],
        "pair": pairs.astype(np.int32),
        "valid": np.ones(len(pairs), np.bool_),
    }


def gallery_batches(
    split: Split,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Return the pictures of a split in order, each once.

    Yields dicts of this process's rows, b = batch_size / process_count: image uint8
    [b,h,w,3], person int32 [b] (raw id), image_id int32 [b], valid bool [b]. Every
    process yields ceil(g / batch_size) batches; rows past the end are black, with
    NOTHING for ids and valid False.

    Raises:
        ValueError: At once, if the settings do not fit each other.
        ImageError, OSError: While iterating, if a picture cannot be read; the message
            names it.
    """
    rows = _process_rows(batch_size, process_index, process_count)
    pictures = Pictures(split, image_size, None)

    def begin(number: int) -> Draft:
        """Plan a batch of pictures."""
        ids, valid = _padded_ids(number, rows, batch_size, len(split.images))
        image = np.zeros((len(ids), *image_size, 3), np.uint8)

        def fill(part: slice) -> None:
            for row in np.flatnonzero(valid[part]) + part.start:
                image[row] = pictures.read_named(int(ids[row]))

        def finish() -> Batch:
            person = _padded(split.image_persons, ids, valid)
            return {"image": image, "person": person, "image_id": ids, "valid": valid}

        return Draft(fill, finish)

    stop = -(-len(split.images) // batch_size)
    return map_steps(begin, start=0, stop=stop, **_sizes(rows, image_size))


def query_batches(
    split: Split,
    *,
    tokenizer: Tokenizer,
    context_length: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Return the captions of a split in order, each once.

    Yields dicts of this process's rows, b = batch_size / process_count: tokens int32
    [b,l], person int32 [b] (raw id), pair int32 [b], valid bool [b]. Every process
    yields ceil(p / batch_size) batches; rows past the end are zeros, with NOTHING for
    ids and valid False.

    Raises:
        ValueError: At once, if the settings do not fit each other.
    """
    rows = _process_rows(batch_size, process_index, process_count)

    def make(number: int) -> Batch:
        """Tokenize a batch of captions."""
        ids, valid = _padded_ids(number, rows, batch_size, len(split.pairs))
        captions = [split.pairs[i].caption for i in ids[valid]]
        tokens = np.zeros((len(ids), context_length), np.int32)
        tokens[valid] = tokenizer.encode(captions, context_length)
        person = _padded(split.pair_persons, ids, valid)
        return {"tokens": tokens, "person": person, "pair": ids, "valid": valid}

    return map(make, range(-(-len(split.pairs) // batch_size)))


def _process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """Return this process's rows of the global batch."""
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count}: no such process")
    share, rest = divmod(batch_size, process_count)
    if rest or share < 1:
        low = max(1, share) * process_count
        raise ValueError(
            f"batch size {batch_size} does not divide over {process_count} processes: "
            f"the nearest that do are {low} and {low + process_count}"
        )
    return slice(process_index * share, (process_index + 1) * share)


def _padded_ids(
    number: int, rows: slice, batch_size: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return a batch's int32 indices, NOTHING past the end, and which are valid."""
    ids = np.arange(rows.start, rows.stop, dtype=np.int32) + number * batch_size
    valid = ids < size
    return np.where(valid, ids, np.int32(NOTHING)), valid


def _padded(values: np.ndarray, ids: np.ndarray, valid: np.ndarray) -> np.ndarray:
    taken = np.full(len(ids), NOTHING, values.dtype)
    taken[valid] = values[ids[valid]]
    return taken


def _shifted(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _sizes(rows: slice, image_size: tuple[int, int]) -> dict[str, int]:
    height, width = image_size
    return {"rows": rows.stop - rows.start, "row_bytes": height * width * 3}
