# SPDX-License-Identifier: Apache-2.0
"""Splits to batches of plain arrays: this process's rows of every global batch.

Nothing random happens here: a training batch is a pure function of (seed, step) and the
files, an evaluation batch of its number. Pictures leave as uint8.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from data_pipeline import order
from data_pipeline.bad_images import BadImages
from data_pipeline.captions import Captions
from data_pipeline.image_cache import ImageCache, open_cache
from data_pipeline.images import ImageError, decode_resized
from data_pipeline.prefetch import Batch, map_steps
from data_pipeline.records import Split
from data_pipeline.tokenizer import Tokenizer

SAMPLERS = ("shuffle", "identity")

NOTHING = -1
"""Person, image id and pair of a padded row of an evaluation batch."""

_ATTEMPTS = 16  # with 1 % unreadable, all of them failing has a probability of 1e-32

_TRAIN = {
    "image": np.uint8,
    "tokens": np.int32,
    "person": np.int32,
    "image_id": np.int32,
    "pair": np.int32,
    "valid": np.bool_,
}
_GALLERY = {k: _TRAIN[k] for k in ("image", "person", "image_id", "valid")}


def train_batches(
    split: Split,
    *,
    tokenizer: Tokenizer,
    image_size: tuple[int, int],
    context_length: int,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    bad_images: BadImages,
    process_index: int = 0,
    process_count: int = 1,
    sampler: str = "shuffle",
    per_identity: int = 4,
    cache: str = "none",
    cache_dir: str | None = None,
    caption_buckets: tuple[int, ...] = (),
) -> Iterator[Batch]:
    """Return the training batches of the steps [start_step, stop_step).

    Yields dicts of this process's rows, b = batch_size / process_count: image uint8
    [b,h,w,3], tokens int32 [b,l], person int32 [b] (contiguous label, -1 unknown),
    image_id int32 [b], pair int32 [b], valid bool [b] (all True).

    A picture that cannot be read is listed in `bad_images`, and its row is another
    pair, chosen by (seed, step, position) alone.

    Args:
        split: the pictures and captions.
        tokenizer: of the captions.
        image_size: (height, width).
        context_length: l.
        batch_size: of the global batch, over all processes.
        seed: of the order.
        start_step: the first step.
        stop_step: the step after the last.
        bad_images: collects unreadable pictures.
        process_index: this process's number.
        process_count: how many processes share a global batch.
        sampler: "shuffle", or "identity" for P identities x K pairs.
        per_identity: K.
        cache: of decoded pictures: "none", "memory" or "disk".
        cache_dir: where the disk cache lies; None for the temporary folder.
        caption_buckets: lengths below l; a batch is cut to the smallest that fits.

    Raises:
        ValueError: at once, where the settings do not fit the data or each other.
        OSError: at once, where the cache does not fit.
        TooManyBadImagesError: while iterating, above 1 % unreadable pictures.
    """
    rows = _process_rows(batch_size, process_index, process_count)
    ids = _train_order(split, sampler, seed, batch_size, per_identity)
    kept = open_cache(
        cache, images=len(split.images), image_size=image_size, folder=cache_dir
    )
    pictures = _Pictures(split, image_size, kept)
    captions = Captions.of(
        tokenizer.encode(split.captions, context_length), caption_buckets
    )

    def make(step: int) -> Batch:
        pairs = ids(step)
        length = captions.cut(pairs)
        fitting = captions.lengths <= length
        replace = _Replacement(split, seed, step, pairs, fitting, bad_images)
        image, pairs = _training_images(pictures, rows, replace)
        return {
            "image": image,
            "tokens": captions.tokens[pairs, :length],
            "person": split.pair_labels[pairs],
            "image_id": split.pair_images[pairs],
            "pair": pairs.astype(np.int32),
            "valid": np.ones(len(pairs), np.bool_),
        }

    size = _batch_bytes(rows, image_size)
    return map_steps(
        make, start=start_step, stop=stop_step, dtypes=_TRAIN, batch_bytes=size
    )


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
        ValueError: at once, where the settings do not fit each other.
        ImageError, OSError: while iterating: a picture cannot be read, by its name.
    """
    rows = _process_rows(batch_size, process_index, process_count)
    pictures = _Pictures(split, image_size, None)

    def make(number: int) -> Batch:
        ids, valid = _padded_ids(number, rows, batch_size, len(split.images))
        image = np.zeros((len(ids), *image_size, 3), np.uint8)
        for row in np.flatnonzero(valid):
            image[row] = pictures.read_named(int(ids[row]))
        return {
            "image": image,
            "person": _padded(split.image_persons, ids, valid),
            "image_id": ids,
            "valid": valid,
        }

    size = _batch_bytes(rows, image_size)
    stop = -(-len(split.images) // batch_size)
    return map_steps(make, start=0, stop=stop, dtypes=_GALLERY, batch_bytes=size)


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
        ValueError: at once, where the settings do not fit each other.
    """
    rows = _process_rows(batch_size, process_index, process_count)

    def make(number: int) -> Batch:
        ids, valid = _padded_ids(number, rows, batch_size, len(split.pairs))
        captions = [split.pairs[i].caption for i in ids[valid]]
        tokens = np.zeros((len(ids), context_length), np.int32)
        tokens[valid] = tokenizer.encode(captions, context_length)
        person = _padded(split.pair_persons, ids, valid)
        return {"tokens": tokens, "person": person, "pair": ids, "valid": valid}

    return map(make, range(-(-len(split.pairs) // batch_size)))


@dataclass(frozen=True)
class _Pictures:
    """The pictures of a split at one size, through the cache where there is one."""

    split: Split
    image_size: tuple[int, int]
    cache: ImageCache | None

    def read(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        kept = self.cache.get(index) if self.cache else None
        if kept is not None:
            return kept
        pixels = decode_resized(self.split.read(index), self.image_size)
        if self.cache:
            self.cache.put(index, pixels)
        return pixels

    def read_named(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Read for an evaluation: an error names the file."""
        try:
            return self.read(index)
        except ImageError as error:
            raise ImageError(
                f"picture {index} of split {self.split.name!r}, "
                f"{self.split.images[index].path}: {error}; an evaluation leaves "
                "nothing out: mend the file or take it out of the annotation"
            ) from error


@dataclass(frozen=True)
class _Replacement:
    """What to do about the unreadable pictures of one step."""

    split: Split
    seed: int
    step: int
    batch: Int64[np.ndarray, "b"]  # of all processes
    fitting: Bool[np.ndarray, "p"]  # pairs whose captions are short enough for it
    bad_images: BadImages

    def candidates(self, row: int) -> Iterator[int]:
        """Yield the pair of a row of the global batch, then what to try in its place.

        None of these is in the batch already, nor in the place of another row: a pair
        stays one of a kind (the weak method's memory has one row for each). Nor has
        any a caption that is longer than what the batch was cut to.
        """
        yield int(self.batch[row])
        others = order.replacement_ids(
            self.step, row, seed=self.seed, batch=self.batch, usable=self.fitting
        )
        yield from (int(pair) for pair in others[:_ATTEMPTS])


def _training_images(
    pictures: _Pictures, rows: slice, replace: _Replacement
) -> tuple[UInt8[np.ndarray, "b h w 3"], Int64[np.ndarray, "b"]]:
    """Read the rows' pictures; return them with the pairs that were really taken."""
    taken = replace.batch[rows].copy()
    images = np.empty((len(taken), *pictures.image_size, 3), np.uint8)
    for i in range(len(taken)):
        taken[i], images[i] = _first_readable(pictures, rows.start + i, replace)
    return images, taken


def _first_readable(
    pictures: _Pictures, row: int, replace: _Replacement
) -> tuple[int, UInt8[np.ndarray, "h w 3"]]:
    split, bad_images = pictures.split, replace.bad_images
    tried = 0
    for candidate in replace.candidates(row):
        index = int(split.pair_images[candidate])
        path = split.images[index].path
        bad_images.see(path)
        try:
            return candidate, pictures.read(index)
        except (ImageError, OSError) as error:
            bad_images.add(path, str(error), images=len(split.images))
        tried += 1
    raise ImageError(
        f"step {replace.step}, row {row}: neither pair {replace.batch[row]} nor any of "
        f"the {tried - 1} others that may stand in for it has a readable picture; the "
        f"last: {path}. Mend the files, or make the batch smaller than half the pairs"
    )


def _train_order(
    split: Split, sampler: str, seed: int, batch_size: int, per_identity: int
) -> Callable[[int], Int64[np.ndarray, "b"]]:
    """Return step -> pair indices of the global batch, having tried the settings."""
    size = len(split.pairs)
    order.steps_per_epoch(size=size, batch_size=batch_size)
    if sampler == "shuffle":
        return lambda step: order.batch_ids(
            step, seed=seed, size=size, batch_size=batch_size
        )
    if sampler != "identity":
        raise ValueError(f"sampler {sampler!r}: wanted one of {', '.join(SAMPLERS)}")
    return order.IdentityOrder(
        split.pair_labels,
        seed=seed,
        batch_size=batch_size,
        per_identity=per_identity,
    ).batch_ids


def _process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """Return the rows of the global batch that are this process's."""
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


def _batch_bytes(rows: slice, image_size: tuple[int, int]) -> int:
    return (rows.stop - rows.start) * image_size[0] * image_size[1] * 3
