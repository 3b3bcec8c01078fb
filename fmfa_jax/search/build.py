# SPDX-License-Identifier: Apache-2.0
"""Make an index, add to it and remove from it; see `store` for how it stays whole."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fmfa_jax.search import approximate, pending, store
from fmfa_jax.search.encoder import Encoder, reopen_encoder
from fmfa_jax.search.gallery import Listing, list_gallery
from fmfa_jax.search.shards import (
    SHARD_ROWS,
    Part,
    Shard,
    Stamp,
    open_shard,
    packed,
    write_shard,
)
from fmfa_jax.search.store import BadFile, Manifest, SearchError, ShardName


@dataclass(frozen=True)
class Change:
    """What a command did to an index.

    Attributes:
        added: pictures that are new or were embedded anew.
        removed: pictures that were taken out.
        bad: all files of the gallery that are no usable pictures.
        rows: pictures in the index now.
        gone: pictures of the index that are no longer on the disk.
        excluded: pictures that were removed before and therefore stay out.
        others: files of the gallery that are no pictures by their names.
        faiss: of the index now.
        met: those of `bad` that this call came upon.
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
    encoder: Encoder,
    *,
    storage: str = "float32",
    engine: str = "exact",
    batch_size: int = 64,
    save_every: int = 1024,
    progress: pending.Progress = pending.silent,
) -> Change:
    """Embed every picture below a folder; continue where an earlier call stopped.

    An index that is there already gets what is new or changed, as by `add`.

    Args:
        gallery: the folder.
        out: the folder of the index.
        encoder: the model.
        storage: "float32", "int16", or "int8" (codes for a short list beside int16
            rows that rank it).
        engine: "exact" or "faiss".
        batch_size: pictures that are embedded at a time.
        save_every: pictures that a killed process loses at most.
        progress: called with (done, wanted, bad) after each batch.

    Raises:
        SearchError: the gallery cannot be used, `out` holds another index, or another
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
    with store.writing(out):
        new = Manifest(
            gallery=str(root),
            model=encoder.record,
            tokenizer="clip" if encoder.tokenizer_name == "clip" else store.TOKENIZER,
            preprocessing=store.PREPROCESSING,
            storage=storage,
            engine=engine,
        )
        old = store.read_manifest(out) if (out / store.MANIFEST).exists() else None
        if old is not None:
            _check_same(out, old, new)
        store.keep_tokenizer(out, encoder.tokenizer_name)
        listing = list_gallery(root, leave=out)
        if old is None and not listing.pictures:
            raise SearchError(
                f"no pictures below {root}: wanted names that end in .jpg, .png, ..."
            )
        job = pending.Job(out, encoder, batch_size, save_every, progress)
        return _add(job, old or new, listing)


def add(
    index: str | Path,
    encoder: Encoder,
    paths: Sequence[str | Path] = (),
    *,
    batch_size: int = 64,
    save_every: int = 1024,
    progress: pending.Progress = pending.silent,
) -> Change:
    """Embed the pictures of the gallery that are new or changed.

    Args:
        index: the folder of the index.
        encoder: the model of the index, from `reopen_encoder`.
        paths: files and folders of the gallery; none: all of it.
        batch_size: see `index_gallery`.
        save_every: see `index_gallery`.
        progress: see `index_gallery`.

    Raises:
        SearchError: a path is not in the gallery, or another process writes.
    """
    folder = Path(index).resolve()
    with store.writing(folder):
        old = store.read_manifest(folder)
        root = Path(old.gallery)
        if not root.is_dir():
            raise SearchError(f"the gallery {root} of this index is not there")
        below = [relative_name(root, path) for path in paths] or [""]
        if encoder.record.sha256 != old.model.sha256:
            raise SearchError(
                f"{folder} was made with another model (SHA-256 {old.model.sha256}) "
                f"than {encoder.record.path} (SHA-256 {encoder.record.sha256})"
            )
        listing = list_gallery(root, below, leave=folder)
        if paths:
            kept = tuple(e for e in old.excluded if not is_below(e, below))
            old = replace(old, excluded=kept)
        job = pending.Job(folder, encoder, batch_size, save_every, progress)
        return _add(job, old, listing, named=bool(paths))


def remove(
    index: str | Path, paths: Sequence[str | Path] = (), *, model: str | None = None
) -> Change:
    """Take pictures out of an index; the files themselves are left alone.

    What is removed by name stays out until it is added by name.

    Args:
        index: the folder of the index.
        paths: files and folders of the gallery; none: what is no longer on the disk.
        model: where the model lies now; only a FAISS index needs it, whose recall is
            measured anew.

    Raises:
        SearchError: a path is not in the index, or another process writes.
    """
    folder = Path(index).resolve()
    with store.writing(folder):
        old = store.read_manifest(folder)
        root = Path(old.gallery)
        names = [relative_name(root, path) for path in paths]
        shards = open_shards(folder, old)
        known = [stamp.file for shard in shards for stamp in shard.stamps()]
        bad_known = [bad.file for bad in old.bad]
        if names:
            drop = _below(known + bad_known, names)
        else:
            drop = {file for file in known if not (root / file).exists()}
            # A link that leads nowhere is still there to be met again.
            drop |= {file for file in bad_known if not os.path.lexists(root / file)}
        bad = tuple(entry for entry in old.bad if entry.file not in drop)
        excluded = tuple(sorted({*old.excluded, *names}))
        changed = replace(old, bad=bad, excluded=excluded)
        faiss = old.engine == "faiss"
        encoder = reopen_encoder(folder, old, model) if faiss else None
        new = _commit(folder, changed, shards, drop, [], encoder)
        return Change(0, old.rows - new.rows, new.bad, new.rows, faiss=new.faiss)


def open_shards(folder: Path, manifest: Manifest) -> list[Shard]:
    """Map all shards of an index, in order.

    Raises:
        SearchError: one is missing or damaged.
    """
    shards = []
    for name in manifest.shards:
        shard = open_shard(folder / store.SHARDS / name.name)
        if len(shard.rows) != name.rows:
            raise SearchError(
                f"shard {name.name} of {folder} has {len(shard.rows)} rows, "
                f"{name.rows} wanted; index the gallery again"
            )
        shards.append(shard)
    return shards


def relative_name(gallery: Path, path: str | Path) -> str:
    """Return a file or folder's name in the gallery.

    Args:
        gallery: the folder.
        path: relative to the gallery, or absolute.

    Raises:
        SearchError: it is not in the gallery.
    """
    whole = Path(os.path.normpath(gallery / path))
    if not whole.is_relative_to(gallery):
        raise SearchError(f"{path} is not in the gallery {gallery}")
    name = whole.relative_to(gallery).as_posix()
    return "" if name == "." else name


def is_below(file: str, names: Sequence[str]) -> bool:
    """Whether a file or folder is one of the names, or lies below one."""
    return any(not n or file == n or file.startswith(f"{n}/") for n in names)


def _below(known: Sequence[str], names: Sequence[str]) -> set[str]:
    drop: set[str] = set()
    for name in names:
        found = {file for file in known if is_below(file, [name])}
        if not found:
            raise SearchError(f"the index has no picture {name!r}, nor any below it")
        drop |= found
    return drop


def _add(
    job: pending.Job, old: Manifest, listing: Listing, *, named: bool = False
) -> Change:
    """Embed what is new or changed; `named`: also what was removed before."""
    shards = open_shards(job.folder, old)
    known = {stamp.file: stamp for shard in shards for stamp in shard.stamps()}
    wanted, excluded = _wanted(old, known, listing, named)
    parts, bad = pending.embed(job, old, wanted)
    fresh = {stamp.file for stamp in wanted}
    root = Path(old.gallery)
    kept = [
        b for b in old.bad if b.file not in fresh and os.path.lexists(root / b.file)
    ]
    every_bad = tuple(sorted([*kept, *bad], key=lambda entry: entry.file))
    drop = fresh & known.keys()
    manifest = replace(old, bad=every_bad)
    new = _commit(job.folder, manifest, shards, drop, parts, job.encoder)
    pending.clear(job.folder)
    added = sum(len(part.rows) for part in parts)
    return Change(
        added=added,
        removed=old.rows + added - new.rows,
        bad=new.bad,
        rows=new.rows,
        gone=sum(not (root / file).is_file() for file in known.keys() - drop),
        excluded=excluded,
        others=listing.others,
        faiss=new.faiss,
        met=tuple(bad),
    )


def _wanted(
    old: Manifest, known: Mapping[str, Stamp], listing: Listing, named: bool
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


def _commit(
    folder: Path,
    manifest: Manifest,
    shards: Sequence[Shard],
    drop: set[str],
    parts: Sequence[Part],
    encoder: Encoder | None,
) -> Manifest:
    """Write the shards that differ, replace the manifest, delete what is over."""
    store.sweep(folder, manifest)
    if not (drop or parts) and (folder / store.MANIFEST).exists():
        store.write_manifest(folder, manifest)
        return manifest
    pairs = list(zip(manifest.shards, shards, strict=True))
    loose = [pair for pair in pairs if _is_loose(pair, drop)]
    names = [pair[0] for pair in pairs if pair not in loose]
    number = 1 + max((int(name.name) for name in manifest.shards), default=-1)
    for part in packed(itertools.chain(_remaining(loose, drop), parts)):
        write_shard(folder / store.SHARDS / f"{number:08d}", part, manifest.storage)
        names.append(ShardName(f"{number:08d}", len(part.rows)))
        number += 1
    new = replace(manifest, shards=tuple(names), faiss=None)
    if manifest.engine == "faiss" and names and encoder is not None:
        whole = open_shards(folder, new)
        record = approximate.build(folder, f"{number:08d}.faiss", whole, encoder)
        new = replace(new, faiss=record)
    store.write_manifest(folder, new)
    store.sweep(folder, new)
    return new


def _is_loose(pair: tuple[ShardName, Shard], drop: set[str]) -> bool:
    """Whether a shard is written anew: it changes, or it is less than half full."""
    name, shard = pair
    return name.rows < SHARD_ROWS // 2 or any(
        stamp.file in drop for stamp in shard.stamps()
    )


def _remaining(
    pairs: Sequence[tuple[ShardName, Shard]], drop: set[str]
) -> Iterator[Part]:
    for _, shard in pairs:
        stamps = shard.stamps()
        keep = np.array([stamp.file not in drop for stamp in stamps])
        kept = tuple(itertools.compress(stamps, keep))
        yield Part(shard.unit(keep), kept)


def _check_same(out: Path, old: Manifest, new: Manifest) -> None:
    """Refuse to go on with an index that was asked for otherwise.

    Raises:
        SearchError: naming all differences.
    """
    there = {"model": old.model.sha256, "model sizes": old.model.config}
    wanted = {"model": new.model.sha256, "model sizes": new.model.config}
    for name in ("gallery", "preprocessing", "tokenizer", "storage", "engine"):
        there[name], wanted[name] = getattr(old, name), getattr(new, name)
    differing = [
        f"{name}: there {there[name]}, asked for {wanted[name]}"
        for name in there
        if there[name] != wanted[name]
    ]
    if differing:
        raise SearchError(
            f"{out} is another index already; choose another --out. "
            + "; ".join(differing)
        )
