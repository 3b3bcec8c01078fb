# SPDX-License-Identifier: Apache-2.0
"""Change an index in commits: after each one it is whole, wherever the writer stops."""

import itertools
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fmfa_jax.search import approximate, remote, store
from fmfa_jax.search.encoder import IndexModel
from fmfa_jax.search.shards import (
    SHARD_ROWS,
    Part,
    Shard,
    Stamp,
    open_shard,
    open_shards,
    packed,
    shard_path,
    write_shard,
)
from fmfa_jax.search.store import IndexRecord, RemoteRecord, ShardRecord


class IndexWriter:
    """An index held by `store.writing`, with its `record` as of the last commit."""

    def __init__(self, folder: Path, record: IndexRecord) -> None:
        """Open and check the index; delete what a killed writer left behind."""
        self.folder, self.record = folder, record
        store.sweep(folder, record)
        self._stamps: dict[Shard, list[Stamp]] = {}
        for shard in open_shards(folder, record):
            # An index from before there were digests gets them now.
            verified = replace(shard, sha256=shard.verify())
            self._stamps[verified] = verified.stamps()

    def known(self) -> dict[str, Stamp]:
        """Return the pictures of the index by name."""
        return {stamp.file: stamp for each in self._stamps.values() for stamp in each}

    def contents(self) -> dict[bytes, tuple[Shard, int]]:
        """Return where the embedding of each content is, by SHA-256.

        What is returned stays readable after further commits.
        """
        return {
            stamp.sha256: (shard, place)
            for shard, stamps in self._stamps.items()
            for place, stamp in enumerate(stamps)
            if stamp.sha256
        }

    def commit(
        self,
        parts: Sequence[Part] = (),
        drop: Set[str] = frozenset(),
        *,
        last: bool = True,
        model: IndexModel | None = None,
        **changes: Any,
    ) -> None:
        """Add and drop pictures in one step.

        Small shards are joined into full ones when there are enough of them; the last
        commit joins them all, and builds the FAISS index where the engine wants one.

        Args:
            parts: The new pictures.
            drop: Names of pictures to take out; they may be among the new ones.
            last: Whether no further commit follows.
            model: The index's model; the engine "exact" does without.
            changes: Other fields of the record.
        """
        record = replace(self.record, **changes)
        stale = self._stale(drop, sum(len(part.rows) for part in parts), last)
        if stale or parts:
            kept = {s: each for s, each in self._stamps.items() if s not in stale}
            old = (_without(drop, shard, self._stamps[shard]) for shard in stale)
            self._stamps = kept | dict(self._written(itertools.chain(old, parts)))
            record = replace(record, faiss=None, remote=_unready(record.remote))
        shards = [ShardRecord(s.path.stem, len(s.rows), s.sha256) for s in self._stamps]
        record = replace(record, shards=tuple(shards))
        if last and record.engine == "faiss" and record.rows and not record.faiss:
            name = f"{self._next():08d}.faiss"
            built = approximate.build(self.folder, name, [*self._stamps], model)
            record = replace(record, faiss=built)
        if last and record.remote and record.rows and not record.approximate:
            filled = remote.hand_over(record.remote, [*self._stamps], model)
            record = replace(record, remote=filled)
        self.record = record
        store.write_record(self.folder, record)
        store.sweep(self.folder, record)
        if last and record.remote:
            remote.tidy(record.remote, [*self._stamps])

    def _stale(self, drop: Set[str], new: int, last: bool) -> list[Shard]:
        """Choose the shards to rewrite."""
        stale = {
            shard
            for shard, stamps in self._stamps.items()
            if drop and any(stamp.file in drop for stamp in stamps)
        }
        small = {s for s in self._stamps if len(s.rows) < SHARD_ROWS // 2} - stale
        waiting = new + sum(len(shard.rows) for shard in small)
        joins = new or stale or len(small) > 1
        if joins and (last or waiting >= SHARD_ROWS):
            stale |= small
        return [shard for shard in self._stamps if shard in stale]

    def _written(self, parts: Iterator[Part]) -> Iterator[tuple[Shard, list[Stamp]]]:
        for part in packed(parts, SHARD_ROWS):
            path = shard_path(self.folder, f"{self._next():08d}")
            digest = write_shard(path, part, self.record.storage)
            yield open_shard(path, digest), list(part.stamps)

    def _next(self) -> int:
        """Return a number that no file of the index has."""
        shards = shard_path(self.folder, "*")
        used = [*shards.parent.glob(shards.name), *self.folder.glob("*.faiss")]
        return 1 + max((int(path.stem) for path in used), default=-1)


def _unready(record: RemoteRecord | None) -> RemoteRecord | None:
    return replace(record, effort=0, recall=0.0) if record else None


def _without(drop: Set[str], shard: Shard, stamps: Sequence[Stamp]) -> Part:
    keep = np.array([stamp.file not in drop for stamp in stamps])
    return Part(shard.unit(keep), tuple(itertools.compress(stamps, keep)))
