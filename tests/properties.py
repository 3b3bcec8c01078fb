# SPDX-License-Identifier: Apache-2.0
"""What the property tests share: how many inputs they try, and features to try.

`make test` tries a few inputs, always the same ones; `make soak` many.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW, MANY = 12, 1000
TRIES = pytest.mark.parametrize(
    "tries", [FEW, pytest.param(MANY, marks=pytest.mark.soak)]
)
"""Gives a test the number of inputs that `holds` tries."""

SHAPES = ("normal", "one direction", "copies", "zero rows", "all zero", "one axis")
"""What features look like; see `features`."""


def holds(
    check: Callable[..., None], tries: int, **inputs: st.SearchStrategy[Any]
) -> None:
    """Assert a property of generated inputs, the simplest that breaks it named last.

    Args:
        check: Takes the inputs by name; raises where the property does not hold.
        tries: Inputs to try.
        inputs: What each argument is drawn from.
    """
    quietly = settings(
        max_examples=tries,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    quietly(given(**inputs)(check))()


@st.composite
def features(draw: st.DrawFn, rows: int, width: int) -> np.ndarray:
    """Float32 features of one of `SHAPES`; lengths from 2**-20 to 2**20."""
    shape = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = rng.normal(size=(rows, width))
    if shape == "one direction":
        found = found[:1] + 1e-3 * found
    elif shape == "copies":
        found = found[rng.integers(0, 2, rows)]
    elif shape == "zero rows":
        found[rng.random(rows) < 0.5] = 0
    elif shape == "all zero":
        found[:] = 0
    elif shape == "one axis":
        found = np.eye(width)[rng.integers(0, 2, rows)] * rng.choice([-1, 1], (rows, 1))
    length = 2.0 ** draw(st.integers(-20, 20))
    return (found * length).astype(np.float32)


def people(rows: int) -> st.SearchStrategy[np.ndarray]:
    """Who each row shows: one person, everyone another, or anything between."""
    some = st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows)
    ends = st.sampled_from([[0] * rows, list(range(rows))])
    return st.one_of(ends, some).map(lambda ids: np.array(ids, np.int32))
