# SPDX-License-Identifier: Apache-2.0
"""Where a run lies: a folder on a disk, or one in an object store and its mirror."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    suppress,
)
from pathlib import Path

import jax

from data_pipeline.buckets import Bucket, scheme
from data_pipeline.command import say
from data_pipeline.hints import printable
from fmfa_jax.machines.processes import agree, check_shared, together
from fmfa_jax.run import disk
from fmfa_jax.run.bucket_lock import BucketLock
from fmfa_jax.run.lock import FolderLock, check_name
from fmfa_jax.run.mirror import Mirror, local_folder


class RunFolder:
    """A run folder that this run alone writes to, a context manager.

    All processes of the run share it. In a store they share nothing else: there process
    0 works in the local folder, and each other one has a folder for what only it needs.

    Attributes:
        local: The folder itself, or the local one of this process.
        apart: Whether `local` is another folder on each of several processes.
        mirror: Keeps in the store what `local` holds; None where it is the folder.
    """

    def __init__(self, workdir: str, say: Callable[[str], None] = say) -> None:
        """Touch nothing yet. All processes must make the same calls.

        Args:
            workdir: Path or URL.
            say: Told of a holder that did not leave in order, on process 0 only.

        Raises:
            ValueError: The name of a folder that no checkpoint can be written to.
            StoreError: No package for the store.
        """
        stored, self._process = bool(scheme(workdir)), jax.process_index()
        self.apart = stored and jax.process_count() > 1
        self._visits = self.apart and self._process > 0  # and keeps nothing here
        self.local = local_folder(workdir, self._process) if stored else Path(workdir)
        check_name(self.local)
        self._lock = FolderLock(self.local, say, name=workdir)
        self._stored: BucketLock | None = None
        self.mirror: Mirror | None = None
        self._bucket = Bucket(workdir) if stored else None
        self._workdir, self._say = workdir, say

    def __enter__(self) -> "RunFolder":
        self._lock.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._stored is not None:
            self._stored.release()
        self._lock.__exit__(*failure)
        if self._visits and self.mirror is not None:
            shutil.rmtree(self.local, ignore_errors=True)

    def take(self) -> None:
        """Take the folder for this run; one in a store is brought down.

        Raises:
            ValueError: The processes have not the same folder.
            InUseError: Names the host and process that hold it, and since when.
            StoreError: The store cannot be read or written.
            RuntimeError: Process 0 has met one of the last two.
        """
        check_same(self._workdir)
        self._lock.take()
        if self._bucket is None or self.mirror is not None:
            return
        with together(f"locking {printable(self._workdir)}"):
            if self._process == 0:
                self._stored = BucketLock(self._bucket, self.local, say=self._say)
                self._stored.take()
        with together(f"copying {printable(self._workdir)}"):
            self.mirror = Mirror(self._bucket, self.local, self._stored)
            if self._process == 0:
                self.mirror.bring()
            else:
                self.mirror.clear()

    def watched(self) -> AbstractContextManager[None]:
        """See `disk.watched`, which tells of checkpoints, on those who have them."""
        return nullcontext() if self._visits else disk.watched(self.local)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put into the store what is there at the end of a block, however it ends."""
        with _kept(self.mirror):
            yield


class Reading:
    """A run folder that is measured, while another process may train in it.

    Attributes:
        local: The folder itself, or a temporary copy of it.
        apart: See `RunFolder`.
        mirror: See `RunFolder`; adds what was measured.
    """

    def __init__(self, workdir: str, local: Path, mirror: Mirror | None) -> None:
        self._workdir, self.local, self.mirror = workdir, local, mirror
        self.apart = mirror is not None and jax.process_count() > 1

    def bring(self) -> None:
        """Fetch the files of a run in a store, without its checkpoints."""
        check_same(self._workdir)
        if self.mirror is not None:
            with together(f"copying {printable(self._workdir)}"):
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
    """
    with ExitStack() as stack:
        if not scheme(workdir):
            yield Reading(workdir, Path(workdir), None)
            return
        local = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield Reading(workdir, local, Mirror(Bucket(workdir), local, None))


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
        with together(f"putting files into {printable(mirror.url)}"):
            mirror.push()


def check_same(workdir: str) -> None:
    """Check that all processes have the same run folder.

    Raises:
        ValueError: On all processes alike.
    """
    stored = bool(scheme(workdir))
    agree({"--workdir": workdir.rstrip("/") if stored else "on a disk"})
    if not stored:
        check_shared(Path(workdir))
