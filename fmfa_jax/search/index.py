# SPDX-License-Identifier: Apache-2.0
"""Make an index, add to it and remove from it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path

import numpy as np

from fmfa_jax.models import ModelConfig
from fmfa_jax.search import approximate, store
from fmfa_jax.search.encoder import IndexModel, reopen_model
from fmfa_jax.search.gallery import (
    Listing,
    Read,
    is_below,
    list_gallery,
    read_pictures,
    relative_name,
)
from fmfa_jax.search.shards import Part, Stamp
from fmfa_jax.search.store import BadFile, IndexRecord, SearchError
from fmfa_jax.search.writer import IndexWriter

Progress = Callable[[int, int, int], None]
"""Called with the numbers of pictures done, wanted, and bad among those done."""


@dataclass(frozen=True)
class Change:
    """What a command did to an index.

    Attributes:
        added: Pictures that are new or were embedded again.
        removed: Pictures that were taken out.
        bad: All files of the gallery that are not usable pictures.
        rows: Pictures in the index now.
        gone: Pictures of the index that are no longer on the disk.
        excluded: Pictures that stay out because they were removed before.
        others: Files of the gallery whose names are not those of pictures.
        faiss: The FAISS index now.
        met: Those of `bad` that this call came upon.
    """

    added: int
    removed: int
    bad: tuple[BadFile, ...]
    rows: int
    gone: int = 0
    excluded: int = 0
    others: int = 0
    faiss: store.FaissRecord | None = None
    met: tuple[BadFile, ...] = ()


def index_gallery(
    gallery: str | Path,
    out: str | Path,
    model: IndexModel,
    *,
    storage: str = "float32",
    engine: str = "exact",
    batch_size: int = 64,
    save_every: int = 1024,
    progress: Progress = lambda *_: None,
) -> Change:
    """Embed every picture below a folder; continue where an earlier call stopped.

    An existing index gets what is new or changed, as by `add`. Finished pictures are
    committed as they come: a call that is broken off leaves a smaller index.

    Args:
        gallery: The folder.
        out: Folder of the index.
        model: The model.
        storage: One of `store.STORAGES`.
        engine: One of `store.ENGINES`.
        batch_size: Pictures to embed at a time.
        save_every: Pictures in a commit: the most that a killed process loses.
        progress: Called after each batch.
    """
    root, out = Path(gallery).resolve(), Path(out).resolve()
    if not root.is_dir():
        raise SearchError(f"no folder of pictures at {gallery}")
    if storage not in store.STORAGES or engine not in store.ENGINES:
        raise SearchError(
            f"storage {storage!r} and engine {engine!r}: wanted one of "
            f"{', '.join(store.STORAGES)} and one of {', '.join(store.ENGINES)}"
        )
    if engine == "faiss":
        approximate.load_faiss()
    record = IndexRecord(
        gallery=str(root),
        model=model.record,
        tokenizer="clip" if model.tokenizer_name == "clip" else store.TOKENIZER,
        preprocessing=store.PREPROCESSING,
        storage=storage,
        engine=engine,
    )
    with store.writing(out):
        begun = (out / store.RECORD).exists()
        if begun:
            asked, record = record, store.read_record(out)
            _check_same(out, record, asked)
        store.keep_tokenizer(out, model.tokenizer_name)
        listing = list_gallery(root, leave=out)
        if not (begun or listing.pictures):
            raise SearchError(
                f"no pictures below {root}: wanted names that end in .jpg, .png, ..."
            )
        work = _Work(out, model, batch_size, save_every, progress)
        return _update(work, record, listing)


def add(
    index: str | Path,
    model: IndexModel,
    paths: Sequence[str | Path] = (),
    *,
    batch_size: int = 64,
    save_every: int = 1024,
    progress: Progress = lambda *_: None,
) -> Change:
    """Embed new and changed pictures of the gallery, or of `paths` in it.

    `model` must be the index's own; for the other arguments see `index_gallery`.
    """
    folder = Path(index).resolve()
    with store.writing(folder):
        record = store.read_record(folder)
        root = Path(record.gallery)
        if not root.is_dir():
            raise SearchError(f"the gallery {root} of this index is not there")
        below = [relative_name(root, path) for path in paths] or [""]
        if model.record.sha256 != record.model.sha256:
            raise SearchError(
                f"{folder} was made with another model (SHA-256 {record.model.sha256}) "
                f"than {model.record.path} (SHA-256 {model.record.sha256})"
            )
        listing = list_gallery(root, below, leave=folder)
        if paths:
            kept = tuple(e for e in record.excluded if not is_below(e, below))
            record = replace(record, excluded=kept)
        work = _Work(folder, model, batch_size, save_every, progress)
        return _update(work, record, listing, named=bool(paths))


def remove(
    index: str | Path, paths: Sequence[str | Path] = (), *, model: str | None = None
) -> Change:
    """Take pictures out of an index; the files themselves are left alone.

    What is removed by name stays out until it is added by name.

    Args:
        index: Folder of the index.
        paths: Files and folders of the gallery; by default what is no longer there.
        model: Where the model lies now; only a FAISS index needs it, whose recall is
            measured again.
    """
    folder = Path(index).resolve()
    with store.writing(folder):
        old = store.read_record(folder)
        root, writer = Path(old.gallery), IndexWriter(folder, old)
        names = [relative_name(root, path) for path in paths]
        known, bad_known = writer.known().keys(), {bad.file for bad in old.bad}
        if names:
            drop = {file for file in known | bad_known if is_below(file, names)}
        else:
            drop = {file for file in known if not (root / file).exists()}
            # A dangling link still exists and would be met again.
            drop |= {file for file in bad_known if not os.path.lexists(root / file)}
        for name in names:
            if not any(is_below(file, [name]) for file in drop):
                reason = f"the index has no picture {name!r}, nor any below it"
                raise SearchError(reason)
        opened = reopen_model(folder, old, model) if old.engine == "faiss" else None
        bad = tuple(entry for entry in old.bad if entry.file not in drop)
        excluded = tuple(sorted({*old.excluded, *names}))
        writer.commit(drop=drop, model=opened, bad=bad, excluded=excluded)
        new = writer.record
        return Change(0, old.rows - new.rows, new.bad, new.rows, faiss=new.faiss)


@dataclass(frozen=True)
class _Work:
    folder: Path
    model: IndexModel
    batch_size: int
    save_every: int
    progress: Progress


def _update(
    work: _Work, old: IndexRecord, listing: Listing, *, named: bool = False
) -> Change:
    """Embed what is new or changed; with `named` also what was removed before."""
    writer = IndexWriter(work.folder, old)
    known, root = writer.known(), Path(old.gallery)
    wanted, excluded = _wanted(old, known, listing, named)
    fresh = {stamp.file for stamp in wanted}
    bad = [b for b in old.bad if b.file not in fresh and os.path.lexists(root / b.file)]
    size, ahead = work.model.image_size, 2 * work.batch_size
    reads = read_pictures(root, wanted, size, ahead=ahead)
    parts, met, tried, done, last = [], [], set(), 0, False
    work.progress(0, len(wanted), 0)
    while not last:
        batch = list(islice(reads, work.batch_size))
        met += [read for _, read in batch if isinstance(read, BadFile)]
        parts += _embedded(work, batch)
        tried |= {stamp.file for stamp, _ in batch}
        done += len(batch)
        last = done == len(wanted)
        if last or len(tried) >= work.save_every:
            listed = tuple(sorted([*bad, *met], key=lambda entry: entry.file))
            # Rows of changed pictures leave in the commit that replaces them.
            drop = tried & known.keys()
            writer.commit(parts, drop, last=last, model=work.model, bad=listed)
            parts, tried = [], set()
        work.progress(done, len(wanted), len(met))
    new, added = writer.record, len(wanted) - len(met)
    return Change(
        added=added,
        removed=old.rows + added - new.rows,
        bad=new.bad,
        rows=new.rows,
        gone=sum(not (root / file).is_file() for file in known.keys() - fresh),
        excluded=excluded,
        others=listing.others,
        faiss=new.faiss,
        met=tuple(met),
    )


def _wanted(
    old: IndexRecord, known: Mapping[str, Stamp], listing: Listing, named: bool
) -> tuple[list[Stamp], int]:
    """Choose the files to embed, and count those that were removed before."""
    tried = {bad.file: Stamp(bad.file, bad.size, bad.mtime_ns) for bad in old.bad}
    fresh = [
        stamp
        for stamp in listing.pictures
        if stamp not in (known.get(stamp.file), tried.get(stamp.file))
    ]
    outside = () if named else old.excluded
    wanted = [s for s in fresh if s.file in known or not is_below(s.file, outside)]
    return wanted, len(fresh) - len(wanted)


def _embedded(work: _Work, batch: Sequence[Read]) -> list[Part]:
    """Embed the usable pictures, padded to one size so that it compiles once."""
    good = [(stamp, read) for stamp, read in batch if not isinstance(read, BadFile)]
    if not good:
        return []
    pixels = np.zeros((work.batch_size, *work.model.image_size, 3), np.uint8)
    pixels[: len(good)] = [picture for _, picture in good]
    rows = work.model.pictures(pixels)[: len(good)]
    return [Part(rows, tuple(stamp for stamp, _ in good))]


def _check_same(out: Path, old: IndexRecord, new: IndexRecord) -> None:
    """Refuse to go on with an index that was asked for otherwise."""
    # What indexes from before there was a choice do not state.
    usual = {f.name: f.default for f in fields(ModelConfig) if f.default is not MISSING}
    there, wanted = (
        {**asdict(r), "model": r.model.sha256, "model sizes": usual | r.model.config}
        for r in (old, new)
    )
    names = ("gallery", "preprocessing", "tokenizer", "storage", "engine")
    differing = [
        f"{name}: there {there[name]}, asked for {wanted[name]}"
        for name in ("model", "model sizes", *names)
        if there[name] != wanted[name]
    ]
    if differing:
        reason = f"{out} is another index already; choose another --out. "
        raise SearchError(reason + "; ".join(differing))
