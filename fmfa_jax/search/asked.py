# SPDX-License-Identifier: Apache-2.0
"""Values of a JSON object that a client sent; unusable ones raise SearchError."""

from collections.abc import Collection, Mapping
from typing import Any

from data_pipeline.hints import printable, unknown
from fmfa_jax.search.store import SearchError


def check_names(asked: Mapping[str, Any], names: Collection[str]) -> None:
    """Refuse values that nobody would read."""
    for name in asked:
        if name not in names:
            raise SearchError(printable(unknown("value", name, names)))


def texts(asked: Mapping[str, Any], name: str, most: int) -> list[str]:
    """Read a list of at most so many texts; [] where there is none."""
    values = asked.get(name) or []
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise SearchError(f"{name}: wanted a list of texts")
    if len(values) > most:
        raise SearchError(f"{name}: wanted at most {most}, got {len(values)}")
    return values


def text(asked: Mapping[str, Any], name: str) -> str:
    """Read a text; "" where there is none."""
    value = asked.get(name) or ""
    if not isinstance(value, str):
        raise SearchError(f"{name}: wanted text")
    return value


def whole(
    asked: Mapping[str, Any], name: str, default: int, low: int, high: int
) -> int:
    """Read a whole number within bounds."""
    value = asked.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise SearchError(f"{name}: wanted a whole number from {low} to {high}")
    return value


def cosine(asked: Mapping[str, Any], name: str) -> float:
    """Read the least cosine that is wanted; below all where there is none."""
    value = asked.get(name)
    if value is None:
        return -2.0
    # False for NaN, infinities and integers beyond any float.
    if type(value) not in (int, float) or not -1e9 <= value <= 1e9:
        raise SearchError(f"{name}: wanted a number")
    return float(value)
