# SPDX-License-Identifier: Apache-2.0
"""Files in object stores, by URL: the one module that talks to a store.

    gs://bucket/name, s3://bucket/name    read and written (packages gcsfs and s3fs)
    any other URL that fsspec knows       read

Objects are named relative to their folder's URL. Stores have no append and no rename:
objects are put whole, and the only condition is `create`, which fails if the name is
taken (If-None-Match on S3, generation match on GCS). Where a store is and who asks, the
libraries find out as they always do: AWS_ENDPOINT_URL, STORAGE_EMULATOR_HOST,
credentials. TensorFlow is not asked: its own clients know no emulator and no s3://.
"""

import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.findings import shortened
from data_pipeline.hints import printable

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
"""Package of each scheme that a run folder may have."""

# What stands for an object's content, of the first of these that a store tells.
_VERSIONS = ("generation", "ETag", "etag", "md5Hash", "LastModified", "mtime")
_VERSIONS += ("created",)
_ADVICE = "see that the address is right, the store reached and access allowed"
_AT_ONCE = 64 << 20  # larger files are put in parts, straight from the disk


class StoreError(OSError):
    """A store does not do what it was asked; the message is one line."""


def scheme(path: str) -> str:
    """The scheme of a URL; "" of a path."""
    name, separator, _ = path.partition("://")
    return name if separator else ""


def readable() -> set[str]:
    """Schemes that can be read, if their packages are installed."""
    from fsspec import available_protocols

    here = {"file", "local", "dir", "data", "simplecache", "filecache", "blockcache"}
    # Names of models are no files.
    return {*available_protocols()} - here - {"hf"}


@dataclass(frozen=True)
class Entry:
    """An object: its size in bytes, and a text that changes with its content."""

    size: int
    version: str


class Bucket:
    """A folder of objects, or a single object."""

    def __init__(self, url: str) -> None:
        """Open it; nothing is asked of the store yet.

        Raises:
            StoreError: No package for the scheme, or one that cannot be used.
        """
        self.url = url.rstrip("/")
        package = PACKAGES.get(scheme(url))
        if package and importlib.util.find_spec(package) is None:
            raise StoreError(
                f"{printable(url)}: wanted the package {package} for {scheme(url)}:// "
                f"addresses, which is not installed: pip install {package}"
            )
        # Its default asks for the kind of each bucket, by another protocol.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        with self._asked("open it"):
            from fsspec.core import url_to_fs  # half a second

            # A listing that is remembered is not that of the store.
            self._fs, root = url_to_fs(self.url, use_listings_cache=False)
        self._root = root.rstrip("/")

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        """Tell of whatever a client library raises in one line."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            kind = type(error).__name__
            reason = shortened(" ".join(str(error).split()), 300)
            advice = "install it" if isinstance(error, ImportError) else _ADVICE
            raise StoreError(
                f"{printable(self.url)}: could not {what}: {kind}: {reason}; {advice}"
            ) from error

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def list(self, below: str = "") -> dict[str, Entry]:
        """All objects in the folder, or in a subfolder; empty if there is none.

        Args:
            below: Name of the subfolder.

        Raises:
            StoreError: The store, or a name that could lead out of a local folder.
        """
        with self._asked("list it"):
            try:
                found = self._fs.find(self._at(below), detail=True)
            except FileNotFoundError:
                found = {}
        start = f"{self._root}/"
        return {
            _sound(path.removeprefix(start), self.url): _entry(info)
            for path, info in sorted(found.items())
            # Consoles make empty objects that end in / for folders.
            if path.startswith(f"{self._at(below)}/") and not path.endswith("/")
            if info["type"] == "file"
        }

    def single(self) -> Entry | None:
        """What the URL itself names, if that is an object."""
        with self._asked("find it"):
            try:
                info = self._fs.info(self._root)
            except FileNotFoundError:
                return None
        return _entry(info) if info["type"] == "file" else None

    def get(self, entries: Mapping[str, Entry], folder: Path) -> None:
        """Copy objects into a local folder, many at a time.

        Args:
            entries: What `list` said of them.
            folder: Where to, under the same names; the empty name is `folder` itself.

        Raises:
            StoreError: One is gone or came with another size.
        """
        if not entries:
            return
        local = [folder / name if name else folder for name in entries]
        for parent in {path.parent for path in local}:
            parent.mkdir(parents=True, exist_ok=True)
        with self._asked("read it"):
            self._fs.get([self._at(name) for name in entries], [*map(str, local)])
        for path, (name, entry) in zip(local, entries.items(), strict=True):
            if path.stat().st_size != entry.size:
                raise StoreError(
                    f"{printable(self.url)}: wanted {entry.size} bytes of "
                    f"{printable(name)}, got {path.stat().st_size}: it was changed "
                    "while it was read; try again"
                )

    def put(self, folder: Path, names: Iterable[str]) -> None:
        """Copy local files to objects of the same names, many at a time.

        Those up to 64 MiB are read first, so many at a time: a log may grow meanwhile.
        """
        sizes = {name: (folder / name).stat().st_size for name in names}
        with self._asked("write it"):
            for part in _rounds(sizes):
                if sizes[part[0]] > _AT_ONCE:
                    # By number: another file may take its name meanwhile.
                    with (folder / part[0]).open("rb") as file:
                        path = f"/dev/fd/{file.fileno()}"
                        self._fs.put_file(path, self._at(part[0]))
                    continue
                contents = [(folder / name).read_bytes() for name in part]
                self._fs.pipe(dict(zip(map(self._at, part), contents, strict=True)))

    def read(self, name: str) -> bytes | None:
        """The content of a small object; None if there is none."""
        with self._asked(f"read {name}"):
            try:
                return self._fs.cat_file(self._at(name))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Put a small object, whatever was there."""
        with self._asked(f"write {name}"):
            self._fs.pipe_file(self._at(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Put a small object unless there is one.

        Its content has to be unlike all others: if an answer is lost and the request
        repeated, the object that is in the way is our own.

        Returns:
            Whether it was put.
        """
        try:
            with self._asked(f"create {name}"):
                self._fs.pipe_file(self._at(name), content, mode="create")
                return True
        except StoreError:
            # Libraries raise different errors for a name that is taken.
            if (there := self.read(name)) is None:
                raise
            return there == content

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; one that is gone already is as good."""
        with self._asked("remove from it"):
            for name in names:
                try:
                    self._fs.rm_file(self._at(name))
                except FileNotFoundError:
                    continue


def _rounds(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names in groups whose files fit into memory; a large file is alone."""
    part: list[str] = []
    total = 0
    for name in sorted(sizes, key=sizes.__getitem__):
        if part and total + sizes[name] > _AT_ONCE:
            yield part
            part, total = [], 0
        part.append(name)
        total += sizes[name]
    if part:
        yield part


def _entry(info: Mapping[str, Any]) -> Entry:
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    return Entry(int(info["size"] or 0), version)


def _sound(name: str, url: str) -> str:
    """An object's name, which has to be that of a file below a local folder."""
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or "\0" in name or "\\" in name:
        raise StoreError(
            f"{printable(url)}: wanted names that files can have, got "
            f"{shortened(name, 200)!r} in it; rename or remove the object"
        )
    return name
