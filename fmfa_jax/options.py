# SPDX-License-Identifier: Apache-2.0
"""Sections of a config as frozen dataclasses that check their own values.

A section's keys are the fields of one dataclass, which lies with the code that it
steers; what a field may be stands beside it, once:

    class Augmentation(Options, section="augment"):
        flip: Annotated[float, Between(0, 1)] = 0.5
"""

import dataclasses
import math
import re
import reprlib
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from data_pipeline.hints import near, printable, unknown

_KINDS: dict[Any, tuple[Any, str]] = {
    str: (str, "a text"),
    bool: (bool, "True or False"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    int | float: (int | float, "a number"),
    tuple: (tuple | list, "several numbers"),
}


@dataclass(frozen=True)
class OneOf:
    """The words that a field may be."""

    words: Collection[str]

    def check(self, key: str, value: Any) -> None:
        """Raise ValueError, naming the near words, for any other value."""
        if value not in self.words:
            raise ValueError(unknown(key, str(value), self.words))


@dataclass(frozen=True)
class Between:
    """The range of a number, or of every number of a tuple, ends included."""

    low: int | float
    high: int | float = math.inf

    def check(self, key: str, value: Any) -> None:
        """Raise ValueError for what lies outside, is NaN or is infinite."""
        for number in value if isinstance(value, tuple | list) else (value,):
            if not isinstance(number, int | float):
                raise ValueError(f"{key}: wanted a number, got {_shown(number)}")
            # NaN compares as false; infinity would pass where there is no high end.
            if number == math.inf or not self._holds(number):
                raise ValueError(f"{key}: wanted {self}, got {_shown(value)}")

    def _holds(self, number: int | float) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"at least {self.low}"
        return f"{self.low} to {self.high}"


class Above(Between):
    """As `Between`, without the low end itself."""

    def _holds(self, number: int | float) -> bool:
        return self.low < number <= self.high

    def __str__(self) -> str:
        upper = "" if self.high == math.inf else f" and at most {self.high}"
        return f"more than {self.low}{upper}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all sections; subclasses are frozen, keyword-only dataclasses.

    Raises:
        ValueError: On creation, for a value that its field does not take; names the
            config's key.
    """

    section: ClassVar[str] = ""

    def __init_subclass__(cls, *, section: str = "") -> None:
        cls.section = section or cls.section

    def __post_init__(self) -> None:
        self.check({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        """Raise ValueError for a value that its field does not take."""
        hints = typing.get_type_hints(cls, include_extras=True)
        for name, value in values.items():
            check(f"config.{cls.section}.{name}", hints[name], value)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Options":
        """The section of a whole config, which may have keys for others as well."""
        own = {f.name: config[cls.section][f.name] for f in dataclasses.fields(cls)}
        cls.check(own)
        return cls(**own)


def check(key: str, hint: Any, value: Any) -> None:
    """Raise ValueError for a value that a field does not take.

    Args:
        key: Of the config, for the message.
        hint: The field's type, or `Annotated` with it and its rules.
        value: What was given.
    """
    _check_kind(key, hint, value)
    for rule in getattr(hint, "__metadata__", ()):
        rule.check(key, value)


def _check_kind(key: str, kind: Any, value: Any) -> None:
    """Refuse a value of another kind than its field's, where rules take it for sure."""
    plain = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
    wanted = _KINDS.get(plain) or _KINDS.get(typing.get_origin(plain))
    if wanted and not isinstance(value, wanted[0]):
        raise ValueError(f"{key}: wanted {wanted[1]}, got {_shown(value)}")
    for each in value if typing.get_origin(plain) is tuple else ():
        _check_kind(key, typing.get_args(plain)[0], each)


def _shown(value: Any) -> str:
    return printable(reprlib.repr(value))


def section_names(cls: type) -> dict[str, str]:
    """Field -> section of a dataclass whose fields are sections; see `sections`."""
    hints = typing.get_type_hints(cls)
    return {
        field.name: getattr(hints[field.name], "section", field.name)
        for field in dataclasses.fields(cls)
    }


def sections(cls: type, config: Mapping[str, Any]) -> Any:
    """Fill a dataclass whose fields are sections.

    Args:
        cls: Each field is a subclass of `Options`, or, for a plain mapping, has the
            name of its section.
        config: Section -> key -> value.
    """
    hints = typing.get_type_hints(cls)
    filled = {}
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        is_section = isinstance(kind, type) and issubclass(kind, Options)
        filled[field.name] = kind.of(config) if is_section else config[field.name]
    return cls(**filled)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value for every leaf of nested mappings; tuples become lists."""
    rows: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows |= flat(value, f"{prefix}{key}.")
        else:
            rows[prefix + key] = list(value) if isinstance(value, tuple) else value
    return rows


def mistyped(arguments: Iterable[str], known: Iterable[str]) -> str:
    """Say what is wrong with the first --config.KEY that no config has; "" if none is.

    Args:
        arguments: Command line.
        known: Dotted keys of a whole config.
    """
    known = list(known)
    for argument in arguments:
        name = argument.partition("=")[0]
        name = re.sub(r"\['(\w+)'\]", r".\1", name)
        key = name.removeprefix("--config.")
        if key == name or any(f"{each}.".startswith(f"{key}.") for each in known):
            continue
        similar = [x for x in known if x.split(".")[-1] == key.split(".")[-1]]
        similar += near(key, known)
        similar = similar or [x for x in known if x.split(".")[0] == key.split(".")[0]]
        hint = f"did you mean {' or '.join(dict.fromkeys(similar))}?"
        hint = hint if similar else "--help lists all keys"
        return f"config.{key}: there is no such key; {hint}"
    return ""
