# SPDX-License-Identifier: Apache-2.0
"""Make an index, add to it and remove from it."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

from fmfa_jax.models import ModelConfig
from fmfa_jax.search import approximate, remote, store
from fmfa_jax.search.embed import Embedder
from fmfa_jax.search.encoder import IndexModel, reopen_model
from fmfa_jax.search.gallery import (
    Listing,
    is_below,
    is_gone,
    list_gallery,
    relative_name,
)
from fmfa_jax.search.shards import Shard, open_shards
from fmfa_jax.search.store import IndexRecord, RemoteRecord, SearchError
from fmfa_jax.search.update import Change, Progress, Work, brought_up_to_date
from fmfa_jax.search.writer import IndexWriter


def index_gallery(
    gallery: str | Path,
    out: str | Path,
    model: IndexModel,
    *,
    storage: str = "float32",
    engine: str = "exact",
    uri: str = "",
    batch_size: int = 64,
    save_every: int = 1024,
    follow_links: bool = False,
    progress: Progress = lambda *_: None,
) -> Change | None:
    """Embed every picture below a folder; continue where an earlier call stopped.

    An existing index gets what is new or changed, as by `add`. Finished pictures are
    committed as they come: a call that is broken off leaves a smaller index. Several
    processes call it alike and share the work; all but the first return None.

    Args:
        gallery: The folder.
        out: Folder of the index.
        model: The model.
        storage: One of `store.STORAGES`.
        engine: One of `store.ENGINES`.
        uri: Where a Qdrant listens, or `remote.EMBEDDED`.
        batch_size: Pictures to embed at a time.
        save_every: Pictures in a commit: the most that a killed process loses.
        follow_links: Whether to enter links to folders of the gallery.
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
    if (engine == "qdrant") != bool(uri):
        raise SearchError("the engine 'qdrant', and no other, has a --uri")
    if engine == "faiss":
        approximate.load_faiss()
    record = IndexRecord(
        gallery=str(root),
        model=model.record,
        tokenizer="clip" if model.tokenizer_name == "clip" else store.TOKENIZER,
        preprocessing=store.PREPROCESSING,
        storage=storage,
        engine=engine,
        tokenizer_sha256=model.tokenizer.fingerprint(),
        remote=RemoteRecord(uri, "") if uri else None,
    )
    embedder = Embedder(model, batch_size, save_every)
    prepared = _begun(out, record, model.tokenizer_name, follow_links)
    return brought_up_to_date(Work(out, embedder, progress), prepared)


@contextmanager
def _begun(
    out: Path, asked: IndexRecord, tokenizer: str, follow_links: bool
) -> Iterator[tuple[IndexRecord, Listing]]:
    """Hold a new index, or an older one that is to be continued."""
    root = Path(asked.gallery)
    with store.writing(out):
        begun, record = (out / store.RECORD).exists(), asked
        if begun:
            record = store.read_record(out)
            _check_same(out, record, asked)
            record = replace(record, tokenizer_sha256=asked.tokenizer_sha256)
        elif record.remote:
            made = remote.new_collection(record.remote.uri)
            record = replace(record, remote=made)
        store.keep_tokenizer(out, tokenizer)
        listing = list_gallery(root, leave=out, follow_links=follow_links)
        if not (begun or listing.pictures):
            left = [f"{each.folder}: {each.reason}" for each in listing.skipped[:3]]
            raise SearchError(
                f"no pictures below {root}: wanted names that end in .jpg, .png, ..."
                + "; not entered: " * bool(left)
                + "; ".join(left)
            )
        yield record, listing


def add(
    index: str | Path,
    model: IndexModel,
    paths: Sequence[str | Path] = (),
    *,
    batch_size: int = 64,
    save_every: int = 1024,
    follow_links: bool = False,
    gallery: str | Path | None = None,
    progress: Progress = lambda *_: None,
) -> Change | None:
    """Embed new and changed pictures of the gallery, or of `paths` in it.

    A picture whose content the index knows is not embedded again; if its file had
    another name that is gone, it takes the new one. For several processes see
    `index_gallery`.

    Args:
        index: Folder of the index.
        model: The index's own.
        paths: Files and folders of the gallery; by default all of it.
        batch_size: See `index_gallery`, as for those that follow.
        save_every: See there.
        follow_links: See there.
        gallery: Where the gallery lies from now on, if it has moved.
        progress: See there.
    """
    folder = Path(index).resolve()
    store.read_record(folder)  # before a lock makes the folder
    embedder = Embedder(model, batch_size, save_every)
    prepared = _grown(folder, model, paths, gallery, follow_links)
    work = Work(folder, embedder, progress)
    return brought_up_to_date(work, prepared, named=bool(paths))


@contextmanager
def _grown(
    folder: Path,
    model: IndexModel,
    paths: Sequence[str | Path],
    gallery: str | Path | None,
    follow_links: bool,
) -> Iterator[tuple[IndexRecord, Listing]]:
    """Hold an index that is to grow by what lies at `paths`."""
    with store.writing(folder):
        record = moved(folder, store.read_record(folder), gallery)
        root = Path(record.gallery)
        if not root.is_dir():
            raise SearchError(_not_there(root))
        below = [relative_name(root, path) for path in paths] or [""]
        if model.record.sha256 != record.model.sha256:
            raise SearchError(
                f"{folder} was made with another model (SHA-256 {record.model.sha256}) "
                f"than {model.record.path} (SHA-256 {model.record.sha256})"
            )
        record = replace(record, tokenizer_sha256=_fingerprint(folder, record, model))
        listing = list_gallery(root, below, leave=folder, follow_links=follow_links)
        if paths:
            kept = tuple(e for e in record.excluded if not is_below(e, below))
            record = replace(record, excluded=kept)
        yield record, listing


def _fingerprint(folder: Path, record: IndexRecord, model: IndexModel) -> str:
    """The fingerprint of the index's tokenizer, which the model has to share."""
    own = record.tokenizer_sha256 or store.own_tokenizer(folder, record).fingerprint()
    if model.tokenizer.fingerprint() != own:
        raise SearchError(
            f"{folder} was made with another tokenizer than {model.tokenizer_name}: "
            "open the model as the index has it (`reopen_model`)"
        )
    return own


def remove(
    index: str | Path,
    paths: Sequence[str | Path] = (),
    *,
    model: str | None = None,
    gallery: str | Path | None = None,
    even_all: bool = False,
) -> Change:
    """Take pictures out of an index; the files themselves are left alone.

    What is removed by name stays out until it is added by name.

    Args:
        index: Folder of the index.
        paths: Files and folders of the gallery; by default what is no longer there.
        model: Where the model lies now; only an approximate index needs it, whose
            recall is measured again.
        gallery: Where the gallery lies from now on, if it has moved.
        even_all: Remove what is no longer there even if nothing is: otherwise that is
            refused, because a disk that is away for a moment looks the same.
    """
    folder = Path(index).resolve()
    store.read_record(folder)
    with store.writing(folder):
        old = moved(folder, store.read_record(folder), gallery)
        root, writer = Path(old.gallery), IndexWriter(folder, old)
        names = [relative_name(root, path) for path in paths]
        known, bad_known = writer.known().keys(), {bad.file for bad in old.bad}
        if names:
            drop = {file for file in known | bad_known if is_below(file, names)}
        else:
            drop = _missing(root, known, even_all)
            # A dangling link still exists and would be met again.
            drop |= {file for file in bad_known if not os.path.lexists(root / file)}
        for name in names:
            if not any(is_below(file, [name]) for file in drop):
                reason = f"the index has no picture {name!r}, nor any below it"
                raise SearchError(reason)
        opened = reopen_model(folder, old, model) if old.engine != "exact" else None
        bad = tuple(entry for entry in old.bad if entry.file not in drop)
        excluded = tuple(sorted({*old.excluded, *names}))
        writer.commit(drop=drop, model=opened, bad=bad, excluded=excluded)
        new = writer.record
        return Change(
            0, old.rows - new.rows, new.bad, new.rows, 0, 0, 0, new.faiss, new.remote
        )


def _missing(root: Path, known: Collection[str], even_all: bool) -> set[str]:
    """Return the pictures that are no longer there, unless all are away."""
    if not (root.is_dir() or even_all):
        raise SearchError(_not_there(root))
    missing = {file for file in known if is_gone(root, file)}
    if known and len(missing) == len(known) and not even_all:
        raise SearchError(
            f"not one of the {len(known)} pictures of this index is below {root}: is "
            "the disk there? If they are gone for good: --missing --even-all; if they "
            "lie elsewhere now: --gallery FOLDER"
        )
    return missing


def _not_there(root: Path) -> str:
    return (
        f"the gallery {root} of this index is not there; if it lies elsewhere now, "
        "name its place with --gallery"
    )


def moved(
    folder: Path,
    record: IndexRecord,
    gallery: str | Path | None,
    opened: Sequence[Shard] | None = None,
) -> IndexRecord:
    """Return the record with the gallery's new place; with None as it is.

    Args:
        folder: Folder of the index.
        record: Its record.
        gallery: The new place.
        opened: Its shards; None: they are opened.

    Raises:
        SearchError: There is no folder, or none of the index's pictures in it.
    """
    if gallery is None:
        return record
    root = Path(gallery).resolve()
    if not root.is_dir():
        raise SearchError(f"--gallery: no folder at {gallery}")
    shards = open_shards(folder, record) if opened is None else opened
    names = (stamp.file for shard in shards for stamp in shard.stamps())
    if shards and all(is_gone(root, name) for name in names):
        raise SearchError(
            f"--gallery: not one of the {record.rows} pictures of this index is below "
            f"{root}; wanted the folder that was {record.gallery}"
        )
    return replace(record, gallery=str(root))


def _check_same(out: Path, old: IndexRecord, new: IndexRecord) -> None:
    """Refuse to go on with an index that was asked for otherwise."""
    # What indexes from before there was a choice do not state.
    usual = {f.name: f.default for f in fields(ModelConfig) if f.default is not MISSING}
    there, wanted = (
        {
            **asdict(r),
            "model": r.model.sha256,
            "model sizes": usual | r.model.config,
            "uri": r.remote.uri if r.remote else "",
        }
        for r in (old, new)
    )
    names = ("gallery", "preprocessing", "tokenizer", "storage", "engine", "uri")
    differing = [
        f"{name}: there {there[name]}, asked for {wanted[name]}"
        for name in ("model", "model sizes", *names)
        if there[name] != wanted[name]
    ]
    if differing:
        reason = f"{out} is another index already; choose another --out. "
        if there["gallery"] != wanted["gallery"]:
            differing.append(
                f"a gallery that has moved: add {out} --gallery {new.gallery}"
            )
        raise SearchError(reason + "; ".join(differing))
