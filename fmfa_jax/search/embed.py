# SPDX-License-Identifier: Apache-2.0
"""Read and embed a gallery's pictures in batches, by one process or by several.

Of several processes each embeds every N-th batch. The batches are those of one process,
so the index has the same bits. Process 0 alone writes it: all that it needs travels.
"""

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float32

from fmfa_jax.machines.processes import broadcast, gather
from fmfa_jax.search.encoder import IndexModel, spread
from fmfa_jax.search.gallery import Picture, is_gone, read_pictures
from fmfa_jax.search.shards import Part, Stamp
from fmfa_jax.search.store import BadFile, SearchError

_LOOKED_AT = 64
"""Files that every process has to see before any is embedded."""


@dataclass(frozen=True)
class Batch:
    """What came of a batch of files.

    Attributes:
        parts: The pictures that were embedded; one part or none.
        known: The pictures whose content the index knows.
        bad: The files that are no usable pictures.
    """

    parts: tuple[Part, ...] = ()
    known: tuple[Stamp, ...] = ()
    bad: tuple[BadFile, ...] = ()

    def __len__(self) -> int:
        new = sum(len(part.stamps) for part in self.parts)
        return new + len(self.known) + len(self.bad)


@dataclass(frozen=True)
class Embedder:
    """How files are embedded.

    Attributes:
        model: The model.
        batch_size: Files in a batch.
        save_every: Files in a commit, and between two meetings of the processes.
    """

    model: IndexModel
    batch_size: int
    save_every: int

    def batches(
        self, root: Path, wanted: Sequence[Stamp], known: Collection[bytes]
    ) -> Iterator[Batch]:
        """Yield what comes of files, in order; of several processes, on process 0.

        The others have to call `assist` meanwhile.

        Args:
            root: The gallery.
            wanted: Its files.
            known: SHA-256 of contents that need not be embedded.
        """
        if jax.process_count() == 1:
            return self._own(root, wanted, known)
        names = [stamp.file for stamp in wanted]
        seen = [each for each in _spread(names) if not is_gone(root, each)]
        digests = [digest.hex() for digest in known] if names else []
        task = {"files": names, "known": digests, "seen": seen, "gallery": str(root)}
        return self._shared(broadcast(task), wanted)

    def assist(self) -> None:
        """Embed this process's share of what process 0 wants embedded."""
        deque(self._shared(broadcast(None), ()), maxlen=0)

    def _shared(self, task: dict[str, Any], wanted: Sequence[Stamp]) -> Iterator[Batch]:
        root, size = Path(task["gallery"]), self.batch_size
        _check_seen(root, task["seen"])
        count, index = jax.process_count(), jax.process_index()
        total = math.ceil(len(task["files"]) / size)
        share = [
            Stamp(file, 0, 0)
            for batch in range(index, total, count)
            for file in task["files"][batch * size : (batch + 1) * size]
        ]
        own = self._own(root, share, {bytes.fromhex(each) for each in task["known"]})
        each_has = math.ceil(self.save_every / (size * count))
        stamps = {stamp.file: stamp for stamp in wanted}
        for _ in range(math.ceil(total / (each_has * count))):
            told, rows = self._met(list(islice(own, each_has)), each_has)
            if index == 0:
                for place in range(each_has):
                    for words, found in zip(told, rows, strict=True):
                        if place < len(words):
                            yield _heard(words[place], found[place], stamps)

    def _met(
        self, batches: Sequence[Batch], each_has: int
    ) -> tuple[list[Any], Float32[np.ndarray, "processes batches b d"]]:
        """Bring the batches of all processes together."""
        width = self.model.model.config.feature_width
        rows = np.zeros((each_has, self.batch_size, width), np.float32)
        for place, batch in enumerate(batches):
            for part in batch.parts:
                rows[place, : len(part.rows)] = part.rows
        told = gather([_told(batch) for batch in batches])
        return told, np.asarray(multihost_utils.process_allgather(rows))

    def _own(
        self, root: Path, stamps: Sequence[Stamp], known: Collection[bytes]
    ) -> Iterator[Batch]:
        """Embed files without other processes."""
        size, ahead = self.model.image_size, 2 * self.batch_size
        reads = read_pictures(root, stamps, size, ahead=ahead, known=known)
        while batch := list(islice(reads, self.batch_size)):
            yield self._embedded(batch)

    def _embedded(self, batch: Iterable[Picture | BadFile]) -> Batch:
        """Embed the new pictures, padded to one size so that it compiles once."""
        pictures = [each for each in batch if isinstance(each, Picture)]
        new = [each for each in pictures if each.pixels is not None]
        known = tuple(each.stamp for each in pictures if each.pixels is None)
        bad = tuple(each for each in batch if isinstance(each, BadFile))
        if not new:
            return Batch((), known, bad)
        pixels = np.zeros((self.batch_size, *self.model.image_size, 3), np.uint8)
        pixels[: len(new)] = [each.pixels for each in new]
        rows = self.model.pictures(pixels)[: len(new)]
        return Batch((Part(rows, tuple(each.stamp for each in new)),), known, bad)


def by_all_devices(embedder: Embedder) -> Embedder:
    """Return an embedder that uses all accelerators of this process.

    A CPU is one device. Of accelerators as many are taken as divide a batch.
    """
    devices = jax.local_devices()
    count = math.gcd(len(devices), embedder.batch_size)
    if devices[0].platform == "cpu" or count == 1:
        return embedder
    return replace(embedder, model=spread(embedder.model, devices[:count]))


def _told(batch: Batch) -> dict[str, dict[str, str]]:
    """Say as JSON what came of a batch, without its rows."""
    new = [stamp for part in batch.parts for stamp in part.stamps]
    return {
        "new": {stamp.file: stamp.sha256.hex() for stamp in new},
        "known": {stamp.file: stamp.sha256.hex() for stamp in batch.known},
        "bad": {bad.file: bad.reason for bad in batch.bad},
    }


def _heard(
    told: dict[str, dict[str, str]],
    rows: Float32[np.ndarray, "b d"],
    stamps: Mapping[str, Stamp],
) -> Batch:
    """Put together again what `_told` says, with its rows and process 0's stamps."""
    new, known = (
        tuple(
            replace(stamps[file], sha256=bytes.fromhex(digest))
            for file, digest in told[kind].items()
        )
        for kind in ("new", "known")
    )
    bad = tuple(
        BadFile(file, s.size, s.mtime_ns, reason, s.ctime_ns)
        for file, reason in told["bad"].items()
        for s in [stamps[file]]
    )
    return Batch((Part(rows[: len(new)], new),) if new else (), known, bad)


def _spread(names: Sequence[str]) -> Sequence[str]:
    return names[:: max(1, len(names) // _LOOKED_AT)]


def _check_seen(root: Path, seen: Sequence[str]) -> None:
    """Check that every process sees the files that process 0 sees.

    Otherwise a host without the gallery's disk would take its share for bad files.

    Raises:
        SearchError: On all processes alike.
    """
    lost = gather([file for file in seen if is_gone(root, file)][:1])
    blind = [f"process {index} ({each[0]})" for index, each in enumerate(lost) if each]
    if blind:
        raise SearchError(
            f"not all processes see the same pictures below {root}; missing on "
            f"{', '.join(blind[:4])}: wanted the gallery under one path on all hosts"
        )
