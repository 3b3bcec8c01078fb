# SPDX-License-Identifier: Apache-2.0
"""What a command writes in one go and is told to put into an object store.

It is written into a temporary folder of this machine, and put when it is whole: by a
command that fails, the store is left as it was.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data_pipeline.buckets import Bucket
from data_pipeline.hints import printable


class Target(str):
    """A URL that is to be written; `delivered` puts a local path in its place."""


@contextmanager
def delivered(
    args: argparse.Namespace, *, new: bool = False
) -> Iterator[Callable[[str | Path], str]]:
    """Let a command write its results here, and put them where they belong at the end.

    Args:
        args: Arguments, each `Target` of which becomes a local path.
        new: Whether nothing may lie at a target yet; otherwise files are replaced.

    Yields:
        What tells how users call a path that was written, for what is said of it.

    Raises:
        FileExistsError: Something is there that must not be.
        StoreError: A store cannot be read or written.
    """
    places: dict[Path, Bucket] = {}
    with ExitStack() as stack:
        for name, value in vars(args).items():
            if isinstance(value, Target):
                bucket = Bucket(value)
                if new and (bucket.single() or bucket.list()):
                    raise FileExistsError(
                        f"{printable(value)} is there already; choose another name"
                    )
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                place = Path(folder, bucket.url.rpartition("/")[2])
                places[place] = bucket
                setattr(args, name, str(place))
        yield lambda path: _address(Path(path), places)
        for place, bucket in places.items():
            _put(place, bucket)


def _put(place: Path, bucket: Bucket) -> None:
    if place.is_file():
        Bucket(bucket.url.rpartition("/")[0]).put(place.parent, [place.name])
        return
    files = [path for path in place.rglob("*") if path.is_file()]
    bucket.put(place, [path.relative_to(place).as_posix() for path in files])


def _address(path: Path, places: dict[Path, Bucket]) -> str:
    for place, bucket in places.items():
        if path.is_relative_to(place):
            below = path.relative_to(place).parts
            return printable("/".join([bucket.url, *below]))
    return str(path)
