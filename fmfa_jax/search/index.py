# SPDX-License-Identifier: Apache-2.0
"""Make an index, add to it and remove from it."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from fmfa_jax.search import approximate, store
from fmfa_jax.search.encoder import IndexModel, reopen_model
from fmfa_jax.search.gallery import (
    Listing,
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


def silent(done: int, wanted: int, bad: int) -> None:
    """Show no progress."""


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
    progress: Progress = silent,
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

    Raises:
        SearchError: The gallery cannot be used, `out` holds another index, or another
            process writes to it.
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
            old = store.read_record(out)
            _check_same(out, old, record)
            record = old
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
    progress: Progress = silent,
) -> Change:
    """Embed the pictures of the gallery that are new or changed.

    Of all of the gallery, or of the files and folders in it that `paths` names, by the
    index's own model; for the other arguments see `index_gallery`.

    Raises:
        SearchError: A path is not in the gallery, or another process writes.
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

    Raises:
        SearchError: A path is not in the index, or another process writes.
    """
    folder = Path(index).resolve()
    with store.writing(folder):
        old = store.read_record(folder)
        root = Path(old.gallery)
        writer = IndexWriter(folder, old)
        names = [relative_name(root, path) for path in paths]
        known, bad_known = list(writer.known()), [bad.file for bad in old.bad]
        if names:
            drop = _below(known + bad_known, names)
        else:
            drop = {file for file in known if not (root / file).exists()}
            # A dangling link still exists and would be met again.
            drop |= {file for file in bad_known if not os.path.lexists(root / file)}
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


def _below(known: Sequence[str], names: Sequence[str]) -> set[str]:
    drop: set[str] = set()
    for name in names:
        found = {file for file in known if is_below(file, [name])}
        if not found:
            raise SearchError(f"the index has no picture {name!r}, nor any below it")
        drop |= found
    return drop


def _update(
    work: _Work, old: IndexRecord, listing: Listing, *, named: bool = False
) -> Change:
    """Embed what is new or changed; with `named` also what was removed before."""
    writer = IndexWriter(work.folder, old)
    known = writer.known()
    root = Path(old.gallery)
    wanted, excluded = _wanted(old, known, listing, named)
    fresh = {stamp.file for stamp in wanted}
    bad = [b for b in old.bad if b.file not in fresh and os.path.lexists(root / b.file)]
    met: list[BadFile] = []
    added = 0
    for parts, worse, last in _embedded(root, wanted, work):
        met += worse
        done = {stamp.file for part in parts for stamp in part.stamps}
        added += len(done)
        # Rows of changed pictures leave in the commit that replaces them.
        drop = (done | {entry.file for entry in worse}) & known.keys()
        listed = tuple(sorted([*bad, *met], key=lambda entry: entry.file))
        writer.commit(parts, drop, last=last, model=work.model, bad=listed)
    new = writer.record
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
    wanted = []
    excluded = 0
    for stamp in listing.pictures:
        if stamp in (known.get(stamp.file), tried.get(stamp.file)):
            continue
        if not named and stamp.file not in known and is_below(stamp.file, old.excluded):
            excluded += 1
        else:
            wanted.append(stamp)
    return wanted, excluded


def _embedded(
    root: Path, wanted: Sequence[Stamp], work: _Work
) -> Iterator[tuple[list[Part], list[BadFile], bool]]:
    """Yield what each commit adds: embeddings, bad files, and whether it is the last.

    Every batch is padded to one size, so that it compiles once.
    """
    size = work.model.image_size
    reads = read_pictures(root, wanted, size, ahead=2 * work.batch_size)
    rows, stamps, bad, done, bad_count = [], [], [], 0, 0
    work.progress(0, len(wanted), 0)
    while True:
        batch = list(islice(reads, work.batch_size))
        good = [(s, read) for s, read in batch if not isinstance(read, BadFile)]
        bad += [read for _, read in batch if isinstance(read, BadFile)]
        if good:
            pixels = np.zeros((work.batch_size, *size, 3), np.uint8)
            pixels[: len(good)] = [picture for _, picture in good]
            rows.append(work.model.pictures(pixels)[: len(good)])
            stamps += [stamp for stamp, _ in good]
        done += len(batch)
        bad_count += len(batch) - len(good)
        last = done == len(wanted)
        if last or len(stamps) + len(bad) >= work.save_every:
            part = [Part(np.concatenate(rows), tuple(stamps))] if rows else []
            yield part, bad, last
            rows, stamps, bad = [], [], []
        work.progress(done, len(wanted), bad_count)
        if last:
            return


def _check_same(out: Path, old: IndexRecord, new: IndexRecord) -> None:
    """Refuse to go on with an index that was asked for otherwise."""
    there, wanted = asdict(old), asdict(new)
    for values in (there, wanted):
        values["model sizes"] = values["model"]["config"]
        values["model"] = values["model"]["sha256"]
    names = ("gallery", "preprocessing", "tokenizer", "storage", "engine")
    differing = [
        f"{name}: there {there[name]}, asked for {wanted[name]}"
        for name in ("model", "model sizes", *names)
        if there[name] != wanted[name]
    ]
    if differing:
        reason = f"{out} is another index already; choose another --out. "
        raise SearchError(reason + "; ".join(differing))
