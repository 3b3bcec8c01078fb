# SPDX-License-Identifier: Apache-2.0
"""Bring an index up to date with its gallery: embed what is new, in commits."""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fmfa_jax.machines.processes import agree, gather, on_first
from fmfa_jax.search import store
from fmfa_jax.search.embed import Batch, Embedder, by_all_devices
from fmfa_jax.search.gallery import Listing, Skipped, is_below, is_gone, unchanged
from fmfa_jax.search.shards import Part, Shard, Stamp
from fmfa_jax.search.store import BadFile, IndexRecord
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
        remote: The collection of Qdrant now.
        met: Those of `bad` that this call came upon.
        reused: Pictures among those added whose content the index knew, so that they
            were not embedded again.
        skipped: Folders that were not entered.
    """

    added: int
    removed: int
    bad: tuple[BadFile, ...]
    rows: int
    gone: int = 0
    excluded: int = 0
    others: int = 0
    faiss: store.FaissRecord | None = None
    remote: store.RemoteRecord | None = None
    met: tuple[BadFile, ...] = ()
    reused: int = 0
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Work:
    """How an index is brought up to date; see `index.index_gallery`."""

    folder: Path
    embedder: Embedder
    progress: Progress


def brought_up_to_date(
    work: Work,
    prepared: AbstractContextManager[tuple[IndexRecord, Listing]],
    *,
    named: bool = False,
) -> Change | None:
    """Update an index by all processes, of which the first holds and writes it.

    Args:
        work: How.
        prepared: What holds the index, with its record and the gallery's listing.
        named: See `update`.

    Returns:
        What was done, on process 0; None on the others.
    """
    embedder = by_all_devices(work.embedder)
    work = replace(work, embedder=embedder)
    agree(
        {
            "model": embedder.model.record.sha256,
            "tokenizer": embedder.model.tokenizer.fingerprint(),
            "batch size": embedder.batch_size,
            "save every": embedder.save_every,
        }
    )
    change = None
    with on_first("opening the index", prepared) as opened:
        if opened:
            change = update(work, *opened, named=named)
        else:
            embedder.assist()
        gather(None)  # none ends before the index is written
    return change


def update(
    work: Work, old: IndexRecord, listing: Listing, *, named: bool = False
) -> Change:
    """Embed what is new or changed; with `named` also what was removed before."""
    writer = IndexWriter(work.folder, old)
    known, root = writer.known(), Path(old.gallery)
    wanted, excluded = _wanted(old, known, listing, named)
    fresh = {stamp.file for stamp in wanted}
    bad = [b for b in old.bad if b.file not in fresh and os.path.lexists(root / b.file)]
    listed = {stamp.file for stamp in listing.pictures}
    gone = {file for file in known.keys() - listed if is_gone(root, file)}
    content = _Content(known, writer.contents() if wanted else {}, gone)
    parts, met, tried, done, last = [], [], set(), 0, False
    batches = work.embedder.batches(root, wanted, content.places)
    work.progress(0, len(wanted), 0)
    while not last:
        batch = next(batches, Batch())
        tried |= {stamp.file for stamp in wanted[done : done + len(batch)]}
        met += batch.bad
        parts += [*batch.parts, *content.known(batch.known)]
        done += len(batch)
        last = done == len(wanted)
        if last or len(tried) >= work.embedder.save_every:
            listed = tuple(sorted([*bad, *met], key=lambda entry: entry.file))
            # Rows of changed pictures leave in the commit that replaces them.
            drop = (tried & known.keys()) | content.renamed
            model = work.embedder.model
            writer.commit(parts, drop, last=last, model=model, bad=listed)
            parts, tried = [], set()
        work.progress(done, len(wanted), len(met))
    new, added = writer.record, len(wanted) - len(met) - content.refreshed
    return Change(
        added=added,
        removed=old.rows + added - new.rows,
        bad=new.bad,
        rows=new.rows,
        gone=len(content.gone),
        excluded=excluded,
        others=listing.others,
        faiss=new.faiss,
        remote=new.remote,
        met=tuple(met),
        reused=content.reused,
        skipped=listing.skipped,
    )


class _Content:
    """What the index knows by content: embeddings that need not be made again.

    Attributes:
        places: Where the embedding of each content is, by SHA-256.
        gone: Pictures of the index that are no longer on the disk.
        renamed: Those of them whose content came under another name.
        reused: Pictures that got the embedding of a known content.
        refreshed: Pictures of which nothing but the times has changed.
    """

    def __init__(
        self,
        known: Mapping[str, Stamp],
        places: Mapping[bytes, tuple[Shard, int]],
        gone: set[str],
    ) -> None:
        self.places, self.gone, self._known = places, gone, known
        self.renamed: set[str] = set()
        self.reused = self.refreshed = 0
        self._lost: dict[bytes, list[str]] = defaultdict(list)
        for file in gone:
            self._lost[known[file].sha256].append(file)

    def known(self, stamps: tuple[Stamp, ...]) -> list[Part]:
        """Return the embeddings of pictures whose content is known."""
        if not stamps:
            return []
        for stamp in stamps:
            self._note(stamp)
        return [Part(np.stack([self._row(s.sha256) for s in stamps]), stamps)]

    def _row(self, content: bytes) -> np.ndarray:
        shard, place = self.places[content]
        return shard.unit(slice(place, place + 1))[0]

    def _note(self, stamp: Stamp) -> None:
        then = self._known.get(stamp.file)
        if then and then.sha256 == stamp.sha256:
            self.refreshed += 1
            return
        self.reused += 1
        if not then and (names := self._lost[stamp.sha256]):
            self.renamed.add(name := names.pop())
            self.gone.discard(name)


def _wanted(
    old: IndexRecord, known: Mapping[str, Stamp], listing: Listing, named: bool
) -> tuple[list[Stamp], int]:
    """Choose the files to read, and count those that were removed before."""
    tried = {bad.file: bad for bad in old.bad}
    fresh = [
        stamp
        for stamp in listing.pictures
        if not unchanged(known.get(stamp.file) or tried.get(stamp.file), stamp)
    ]
    outside = () if named else old.excluded
    wanted = [s for s in fresh if s.file in known or not is_below(s.file, outside)]
    return wanted, len(fresh) - len(wanted)
