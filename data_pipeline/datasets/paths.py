# SPDX-License-Identifier: Apache-2.0
"""Picture paths as people write them: where the file is, or which one may be meant."""

import os
import re
import unicodedata
from collections import defaultdict
from functools import cached_property

_DRIVE = re.compile(r"[A-Za-z]:/")


def normalised(file: str) -> str:
    """Return a relative path with "/" between its parts, no outer blanks, in NFC.

    Two annotated paths that differ in no more than that mean the same picture.
    """
    if not _is_plain(file):
        file = unicodedata.normalize("NFC", file.strip()).replace("\\", "/")
    return os.path.normpath(file)


def is_respelled(file: str) -> bool:
    """Return whether `normalised` changes more than doubled and leading "./"."""
    return not _is_plain(file) and normalised(file) != os.path.normpath(file)


def is_inside(file: str) -> bool:
    """Return whether a path, in whichever notation, stays inside its folder."""
    path = file.strip().replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    outside = path.startswith("/") or _DRIVE.match(path) or ".." in parts
    return bool(parts) and not outside and "\0" not in file


class ImageFolder:
    """The folder of a data set's pictures, seen through paths as people write them."""

    def __init__(self, folder: str) -> None:
        """Name the folder, which is not read before it has to be."""
        self.folder = folder
        self._forms: dict[str, dict[str, str]] = {}

    def locate(self, file: str) -> str:
        """Return where an annotated picture is, or would be.

        A path that exists is taken literally. Otherwise the separators of Windows,
        outer blanks and the Unicode form of names do not count. Plain paths cost no
        look at the disk.
        """
        literal = os.path.join(self.folder, file)
        if _is_plain(file) or os.path.lexists(literal):
            return literal
        place = self.folder
        for part in normalised(file).split("/"):
            step = os.path.join(place, part)
            there = os.path.lexists(step)
            place = step if there else self._other_form(place, part)
        return place

    def near(self, file: str) -> str | None:
        """Return the only file whose path differs little from `file`, if there is one.

        Case, the suffix after the last dot and leading folders that one of them has and
        the other lacks do not count.
        """
        wanted = _parts(normalised(file))
        near = [
            path
            for path in self._by_name.get(wanted[-1], ())
            if _tails_agree(wanted, _parts(path))
        ]
        return near[0] if len(near) == 1 else None

    def _other_form(self, folder: str, name: str) -> str:
        """Return the path of the entry that has this name in any Unicode form."""
        if folder not in self._forms:
            entries = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
            forms = {unicodedata.normalize("NFC", entry): entry for entry in entries}
            self._forms[folder] = forms
        return os.path.join(folder, self._forms[folder].get(name, name))

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for place, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.relpath(os.path.join(place, name), self.folder)
                found[_parts(name)[-1]].append(path)
        return found


def _is_plain(file: str) -> bool:
    return file.isascii() and "\\" not in file and file == file.strip()


def _parts(path: str) -> list[str]:
    path = unicodedata.normalize("NFC", os.path.splitext(path)[0]).casefold()
    return [part.strip() for part in path.split("/")]


def _tails_agree(one: list[str], other: list[str]) -> bool:
    common = min(len(one), len(other))
    return one[-common:] == other[-common:]
