# SPDX-License-Identifier: Apache-2.0
"""Fields of annotation files, checked and normalised; errors name file and place."""

import json
import math
import re
import reprlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.datasets.paths import is_inside
from data_pipeline.hints import printable
from data_pipeline.regular import LARGEST, read_json

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {"training": "train", "testing": "test", "valid": "val"}
_SPLIT_NAMES |= {"validation": "val"} | {name: name for name in SPLITS}
LARGEST_PERSON = 2**31 - 1  # ids travel as int32
LONGEST_PATH = 4096  # no file system takes more, and to follow it costs its square
LONGEST_NAME = 1000
"""Letters of a person's name: Unicode's forms may cost the square of their number."""
# Values are shown in bounded time, however large or deeply nested they are.
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 70
_WHOLE = re.compile(r"([0-9]{1,10})(?:\.0+)?")


class DatasetMissing(FileNotFoundError):
    """Raised when a data set is not where it was expected."""


class AnnotationError(ValueError):
    """Raised when an annotation file is malformed."""

    def __init__(self, message: str) -> None:
        """Keep the message, safe to print."""
        super().__init__(printable(message))


@dataclass(frozen=True)
class RawEntry:
    """One unchecked entry; `place` is its number in `file`, such as "entry 7"."""

    file: str
    place: str
    values: Mapping[str, object] = field(repr=False)

    def error(self, name: str, wanted: str) -> AnnotationError:
        """Return the error for a field that is not what was wanted."""
        came = _shown(self.values[name]) if name in self.values else "no such field"
        return AnnotationError(
            f"{self.file}, {self.place}, field {name!r}: wanted {wanted}, got {came}"
        )

    def text(self, name: str) -> str:
        """Return a field that must be a text."""
        value = self.values.get(name)
        if not isinstance(value, str) or not _is_unicode(value):
            raise self.error(name, "a text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a field that must be a list of texts; the list may be empty."""
        value = self.values.get(name)
        if not isinstance(value, list) or not all(
            isinstance(text, str) and _is_unicode(text) for text in value
        ):
            raise self.error(name, "a list of texts")
        return tuple(value)

    def split(self, name: str) -> str:
        """Return a field that must be a split's name, in any case and with blanks."""
        split = _SPLIT_NAMES.get(self.text(name).strip().casefold())
        if split is None:
            raise self.error(name, "train, val or test")
        return split

    def person_name(self, name: str) -> str | None:
        """Return a person's name or number as a text; None if it is unknown.

        Empty texts, null and NaN (an empty cell, as pandas writes it) mean that nobody
        knows who it is. Texts are brought to Unicode's form NFC, because the same name
        may be spelled in several, and lose their outer blanks.
        """
        value = self.values.get(name)
        if type(value) is float and math.isfinite(value) and value.is_integer():
            value = int(value)
        if value is None or (type(value) is float and math.isnan(value)):
            return None
        if type(value) is int:
            return str(value)
        if not isinstance(value, str) or not _is_unicode(value):
            raise self.error(name, "a text or a whole number")
        if len(value) > LONGEST_NAME:
            raise self.error(name, f"at most {LONGEST_NAME} letters")
        return unicodedata.normalize("NFC", value).strip() or None

    def person(self, name: str) -> int | None:
        """Return a person's number, which may be written in digits; None if unknown."""
        if name not in self.values:
            raise self.error(name, "a person's number, or null")
        wanted = f"a whole number from 0 to {LARGEST_PERSON}, or null"
        try:
            text = self.person_name(name)
        except AnnotationError:
            raise self.error(name, wanted) from None
        if text is None:
            return None
        digits = _WHOLE.fullmatch(text)
        if digits is None or int(digits[1]) > LARGEST_PERSON:
            raise self.error(name, wanted)
        return int(digits[1])

    def image_file(self, name: str) -> str:
        """Return a field that must be a path inside the image folder.

        Absolute paths and paths with ".." are rejected: an annotation file from
        elsewhere must not make the program read other files. Links that the user placed
        inside the image folder are followed.
        """
        value = self.text(name)
        if len(value) > LONGEST_PATH:
            raise self.error(name, f"a path of at most {LONGEST_PATH} letters")
        if not is_inside(value):
            raise self.error(name, "a relative path inside the image folder, no '..'")
        return value


def read_json_list(path: Path) -> list[RawEntry]:
    """Read an annotation file that consists of one JSON list of objects.

    Raises:
        AnnotationError: If it is not JSON, not a list of objects, or empty.
    """
    try:
        entries = read_json(path, largest=LARGEST)
    except (OSError, ValueError) as error:
        raise AnnotationError(f"{path}: wanted a JSON file, got: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise AnnotationError(
            f"{path}: wanted a JSON list with at least one entry, got {_shown(entries)}"
        )
    return [
        raw_entry(str(path), f"entry {i}", values) for i, values in enumerate(entries)
    ]


def read_json_line(path: Path, number: int, line: str) -> RawEntry:
    """Read one line of a file that has a JSON object on each.

    Raises:
        AnnotationError: If the line is something else.
    """
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(
            f"{path}, line {number}: wanted one JSON object, got: {error}"
        ) from error
    return raw_entry(str(path), f"line {number}", values)


def raw_entry(file: str, place: str, values: object) -> RawEntry:
    """Return `values` as an entry.

    Raises:
        AnnotationError: If it is not a JSON object.
    """
    if not isinstance(values, dict):
        raise AnnotationError(
            f"{file}, {place}: wanted an object with fields, got {_shown(values)}"
        )
    return RawEntry(file, place, values)


def _is_unicode(text: str) -> bool:
    """Return whether a text can be encoded: JSON may escape lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    text = printable(_REPR.repr(value))
    text = text if len(text) <= 80 else text[:77] + "..."
    return f"{type(value).__name__} {text}"
