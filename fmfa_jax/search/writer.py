# SPDX-License-Identifier: Apache-2.0
"""Change an index in commits: after each one it is whole, wherever the writer stops."""

import itertools
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fmfa_jax.search import approximate, store
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
from fmfa_jax.search.store import IndexRecord, ShardRecord


@dataclass(frozen=True, eq=False)
class _Held:
    record: ShardRecord
    shard: Shard
    stamps: list[Stamp]

    @property
    def small(self) -> bool:
        return self.record.rows < SHARD_ROWS // 2

    def without(self, drop: Set[str]) -> Part:
        keep = np.array([stamp.file not in drop for stamp in self.stamps])
        kept = tuple(itertools.compress(self.stamps, keep))
        return Part(self.shard.unit(keep), kept)


class IndexWriter:
    """An index that is held for writing; see `store.writing`.

    Attributes:
        folder: Folder of the index.
        record: The index as of the last commit.
    """

    def __init__(self, folder: Path, record: IndexRecord) -> None:
        """Open the index, and delete what a killed writer left.

        Raises:
            SearchError: A shard is missing or damaged.
        """
        self.folder, self.record = folder, record
        store.sweep(folder, record)
        self._held: list[_Held] = []
        for each, shard in zip(record.shards, open_shards(folder, record), strict=True):
            shard.check()
            self._held.append(_Held(each, shard, shard.stamps()))

    def known(self) -> dict[str, Stamp]:
        """Return the pictures of the index by name."""
        return {stamp.file: stamp for held in self._held for stamp in held.stamps}

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
            model: The index's model; only the engine "faiss" needs it.
            changes: Other fields of the record.
        """
        record = replace(self.record, **changes)
        stale = self._stale(drop, sum(len(part.rows) for part in parts), last)
        if stale or parts:
            kept = [held for held in self._held if held not in stale]
            old = (held.without(drop) for held in stale)
            self._held = kept + list(self._written(itertools.chain(old, parts)))
            shards = tuple(held.record for held in self._held)
            record = replace(record, shards=shards, faiss=None)
        if last and record.engine == "faiss" and record.rows and not record.faiss:
            shards = [held.shard for held in self._held]
            name = f"{self._next():08d}.faiss"
            built = approximate.build(self.folder, name, shards, model)
            record = replace(record, faiss=built)
        self.record = record
        store.write_record(self.folder, record)
        store.sweep(self.folder, record)

    def _stale(self, drop: Set[str], new: int, last: bool) -> list[_Held]:
        """Choose the shards to write anew."""
        changed = [
            held
            for held in self._held
            if drop and any(stamp.file in drop for stamp in held.stamps)
        ]
        small = [held for held in self._held if held.small and held not in changed]
        waiting = new + sum(held.record.rows for held in small)
        alone = not (new or changed) and len(small) < 2
        if alone or not (last or waiting >= SHARD_ROWS):
            return changed
        return [held for held in self._held if held in changed or held in small]

    def _written(self, parts: Iterator[Part]) -> Iterator[_Held]:
        for number, part in enumerate(packed(parts, SHARD_ROWS), self._next()):
            path = shard_path(self.folder, f"{number:08d}")
            write_shard(path, part, self.record.storage)
            record = ShardRecord(path.stem, len(part.rows))
            yield _Held(record, open_shard(path), list(part.stamps))

    def _next(self) -> int:
        """Return a number that no file of the index has."""
        names = [shard.name for shard in self.record.shards]
        names += [held.record.name for held in self._held]
        if self.record.faiss:
            names.append(Path(self.record.faiss.file).stem)
        return 1 + max(map(int, names), default=-1)
