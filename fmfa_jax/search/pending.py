# SPDX-License-Identifier: Apache-2.0
"""Embed many pictures in parts that outlast a killed process.

    pending/job.json       which model and gallery the parts are of
    pending/NUMBER/        a finished part, as a shard
    pending/NUMBER.json    the unusable files that were met with it

A file that has changed since its part was written is embedded anew.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path

import numpy as np

from fmfa_jax.search import store
from fmfa_jax.search.encoder import Encoder
from fmfa_jax.search.gallery import Read, read_pictures
from fmfa_jax.search.shards import Part, Stamp, open_shard, write_shard
from fmfa_jax.search.store import BadFile, Manifest, SearchError

Progress = Callable[[int, int, int], None]
"""Called with the pictures done, all that are wanted, and the bad ones among them."""


def silent(done: int, wanted: int, bad: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Job:
    """How pictures are embedded into an index.

    Attributes:
        folder: of the index.
        encoder: the model.
        batch_size: pictures that are embedded at a time.
        save_every: pictures in a part.
        progress: called after each batch.
    """

    folder: Path
    encoder: Encoder
    batch_size: int
    save_every: int
    progress: Progress


def embed(
    job: Job, manifest: Manifest, wanted: Sequence[Stamp]
) -> tuple[list[Part], list[BadFile]]:
    """Embed files, except those that an earlier, killed call has finished.

    Returns:
        The parts, mapped from the disk, and the files that are no usable pictures.

    Raises:
        SearchError: the finished parts are of another model or gallery.
    """
    place = job.folder / store.PENDING
    _check_job(place, manifest)
    wanted_now = set(wanted)
    parts, bad = _finished(place, wanted_now)
    done = {stamp for part in parts for stamp in part.stamps}
    done |= {Stamp(entry.file, entry.size, entry.mtime_ns) for entry in bad}
    rest = [stamp for stamp in wanted if stamp not in done]
    job.progress(len(done), len(wanted), len(bad))
    if rest:
        _embed_rest(job, manifest, rest, (len(done), len(wanted), len(bad)))
        parts, bad = _finished(place, wanted_now)
    return parts, bad


def clear(folder: Path) -> None:
    """Delete the finished parts: the index holds them now."""
    shutil.rmtree(folder / store.PENDING, ignore_errors=True)


def _check_job(place: Path, manifest: Manifest) -> None:
    """Begin a job, or recognise the one that was begun."""
    job = {
        "gallery": manifest.gallery,
        "sha256": manifest.model.sha256,
        "config": manifest.model.config,
        "preprocessing": manifest.preprocessing,
    }
    try:
        begun = json.loads((place / "job.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        place.mkdir(parents=True, exist_ok=True)
        store.write_text(place / "job.json", json.dumps(job))
        return
    if begun != job:
        names = [name for name in job if begun.get(name) != job[name]]
        raise SearchError(
            f"{place} holds the beginning of an index with another "
            f"{', '.join(names)}; choose another --out, or delete {place}"
        )


def _finished(place: Path, wanted: set[Stamp]) -> tuple[list[Part], list[BadFile]]:
    """Read what is finished and still wanted."""
    parts: list[Part] = []
    bad: list[BadFile] = []
    for folder in sorted(place.glob("[0-9]" * 8)):
        shard = open_shard(folder)
        stamps = shard.stamps()
        keep = np.array([stamp in wanted for stamp in stamps])
        rows = shard.rows if keep.all() else shard.rows[keep]
        parts.append(Part(rows, tuple(compress(stamps, keep))))
    for listed in sorted(place.glob("[0-9]" * 8 + ".json")):
        for values in json.loads(listed.read_text(encoding="utf-8")):
            entry = BadFile(**values)
            if Stamp(entry.file, entry.size, entry.mtime_ns) in wanted:
                bad.append(entry)
    return parts, bad


def _embed_rest(
    job: Job, manifest: Manifest, rest: Sequence[Stamp], counts: tuple[int, int, int]
) -> None:
    """Embed batch after batch, and save a part whenever it is large enough."""
    place = job.folder / store.PENDING
    done, wanted, bad_count = counts
    number = 1 + max((int(p.stem) for p in place.glob("[0-9]" * 8 + "*")), default=-1)
    reads = read_pictures(
        Path(manifest.gallery), rest, job.encoder.image_size, ahead=2 * job.batch_size
    )
    rows: list[Part] = []
    bad: list[BadFile] = []
    for part, worse in _batches(job, reads):
        rows.append(part)
        bad += worse
        done += len(part.stamps) + len(worse)
        bad_count += len(worse)
        unsaved = sum(len(each.stamps) for each in rows) + len(bad)
        if unsaved >= job.save_every or done == wanted:
            _save(place, number, rows, bad)
            number, rows, bad = number + 1, [], []
        job.progress(done, wanted, bad_count)


def _batches(job: Job, reads: Iterator[Read]) -> Iterator[tuple[Part, list[BadFile]]]:
    """Embed the readable pictures of each batch, padded so that one program serves."""
    while batch := list(islice(reads, job.batch_size)):
        bad = [read for _, read in batch if isinstance(read, BadFile)]
        good = [(s, read) for s, read in batch if not isinstance(read, BadFile)]
        pixels = np.zeros((job.batch_size, *job.encoder.image_size, 3), np.uint8)
        for place, (_, picture) in zip(pixels, good, strict=False):
            place[...] = picture
        rows = job.encoder.pictures(pixels)[: len(good)]
        yield Part(rows, tuple(stamp for stamp, _ in good)), bad


def _save(
    place: Path, number: int, parts: Sequence[Part], bad: Sequence[BadFile]
) -> None:
    """Write a part and its list of bad files."""
    stamps = tuple(stamp for part in parts for stamp in part.stamps)
    if stamps:
        rows = np.concatenate([part.rows for part in parts])
        write_shard(place / f"{number:08d}", Part(rows, stamps), "float32")
    listed = json.dumps([dataclasses.asdict(entry) for entry in bad])
    store.write_text(place / f"{number:08d}.json", listed)
