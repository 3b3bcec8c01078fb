# SPDX-License-Identifier: Apache-2.0
"""Where a run lies: a folder on a disk, or one in an object store and its mirror."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import jax

from data_pipeline.buckets import Bucket, scheme
from data_pipeline.command import say
from data_pipeline.hints import printable
from fmfa_jax.run.bucket_lock import BucketLock
from fmfa_jax.run.lock import FolderLock, check_name
from fmfa_jax.run.mirror import Mirror, local_folder


class RunFolder:
    """A run folder that this run alone writes to, a context manager.

    Attributes:
        local: The folder itself, or the local one of a run in a store.
        mirror: Keeps in the store what `local` holds; None where it is the folder.
    """

    def __init__(self, workdir: str, say: Callable[[str], None] = say) -> None:
        """Touch nothing yet. All processes must make the same calls.

        Args:
            workdir: Path or URL.
            say: Told of a holder that did not leave in order, on process 0 only.

        Raises:
            ValueError: The name of a folder that no checkpoint can be written to, or
                several processes and a store.
            StoreError: No package for the store.
        """
        stored = bool(scheme(workdir))
        self.local = local_folder(workdir) if stored else Path(workdir)
        check_name(self.local)
        self._lock = FolderLock(self.local, say, name=workdir)
        self._stored: BucketLock | None = None
        self.mirror: Mirror | None = None
        self._bucket = _alone(workdir) if stored else None
        self._say = say

    def __enter__(self) -> "RunFolder":
        self._lock.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._stored is not None:
            self._stored.release()
        self._lock.__exit__(*failure)

    def take(self) -> None:
        """Take the folder for this run; one in a store is brought down.

        Raises:
            InUseError: Names the host and process that hold it, and since when.
            StoreError: The store cannot be read or written.
        """
        self._lock.take()
        if self._bucket is None or self.mirror is not None:
            return
        self._stored = BucketLock(self._bucket, self.local, say=self._say)
        self._stored.take()
        self.mirror = Mirror(self._bucket, self.local, self._stored)
        self.mirror.bring()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put into the store what is there at the end of a block, however it ends."""
        with _kept(self.mirror):
            yield


class Reading:
    """A run folder that is measured, while another process may train in it.

    Attributes:
        local: The folder itself, or a temporary copy of it.
        mirror: See `RunFolder`; adds what was measured.
    """

    def __init__(self, local: Path, mirror: Mirror | None) -> None:
        self.local, self.mirror = local, mirror

    def bring(self) -> None:
        """Fetch the files of a run in a store, without its checkpoints."""
        if self.mirror is not None:
            self.mirror.bring(checkpoints=False)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """See `RunFolder.kept`."""
        with _kept(self.mirror):
            yield


@contextmanager
def reading(workdir: str) -> Iterator[Reading]:
    """Open a run folder to be measured.

    Args:
        workdir: Path or URL.

    Raises:
        ValueError: Several processes and a store.
    """
    with ExitStack() as stack:
        if not scheme(workdir):
            yield Reading(Path(workdir), None)
            return
        bucket = _alone(workdir)
        local = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield Reading(local, Mirror(bucket, local, None))


@contextmanager
def _kept(mirror: Mirror | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if mirror is not None:
            with suppress(Exception):  # what ended the block is told
                mirror.push()
        raise
    if mirror is not None:
        mirror.push()


def _alone(url: str) -> Bucket:
    """A run folder in a store; one process can have it."""
    if (count := jax.process_count()) > 1:
        raise ValueError(
            f"--workdir={printable(url)}: wanted one process, got {count}: what "
            "several write of a checkpoint is put together on a file system that they "
            "share; name a mounted --workdir"
        )
    return Bucket(url)
