# SPDX-License-Identifier: Apache-2.0
"""Resizing against torch's own interpolation and the official code's numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from fmfa_jax.weights.positions import (
    LINES,
    Interpolation,
    resize_grid,
    resize_line,
    square_grid,
)

REFERENCE = Path(__file__).parents[2] / "reference" / "fmfa.npz"


def torch_grid(position, source, target, mode, dtype=torch.float64):
    # In float32 torch itself errs by 1e-5: it rounds the places between samples.
    patches = (
        torch.tensor(position[1:]).to(dtype).reshape(1, *source, -1).permute(0, 3, 1, 2)
    )
    out = interpolate(patches, size=target, mode=mode, align_corners=False)
    rows = out.permute(0, 2, 3, 1).reshape(-1, position.shape[1]).numpy()
    return np.concatenate([position[:1], rows])


@pytest.mark.parametrize("kind", list(Interpolation))
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((14, 14), (24, 8)),
        ((7, 7), (12, 4)),
        ((16, 16), (27, 9)),
        ((3, 5), (2, 9)),
        ((4, 2), (1, 1)),
        ((1, 1), (3, 2)),
    ],
)
def test_grids_as_torch_resizes_them(kind, source, target):
    rng = np.random.default_rng(1)
    position = rng.normal(size=(1 + source[0] * source[1], 5)).astype(np.float32)
    got = resize_grid(position, source, target, kind)
    wanted = torch_grid(position, source, target, kind.value)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(got[0], position[0])


def test_the_official_resize():
    with np.load(REFERENCE) as file:
        stored = file["clip/visual.positional_embedding"].astype(np.float32)
        wanted = file["clip/visual.positional_embedding_resized"]
    got = resize_grid(stored, (4, 4), (6, 3))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


def test_the_same_grid_is_left_alone():
    position = np.random.default_rng(0).normal(size=(13, 3)).astype(np.float32)
    assert resize_grid(position, (6, 2), (6, 2)) is position
    with pytest.raises(ValueError, match=r"a 2 x 4 grid has 9 rows .* has 13"):
        resize_grid(position, (2, 4), (6, 2))


@pytest.mark.parametrize("length", [10, 23, 168])
def test_text_positions_as_torch_resizes_a_line(length):
    position = np.random.default_rng(2).normal(size=(77, 4)).astype(np.float32)
    line = torch.tensor(position).double().t()[None]
    wanted = interpolate(line, size=length, mode="linear", align_corners=False)
    got = resize_line(position, length)
    np.testing.assert_allclose(got, wanted[0].t().numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [78, 168, 248])
def test_the_first_text_positions_can_be_kept(length):
    """Of 77 to 248 the others are stretched by 4, as in Long-CLIP."""
    position = np.random.default_rng(2).normal(size=(77, 4)).astype(np.float32)
    got = resize_line(position, length, "keep")
    assert got.shape == (length, 4) and got.dtype == np.float32
    np.testing.assert_array_equal(got[:20], position[:20])
    np.testing.assert_array_equal(got[20:], resize_line(position[20:], length - 20))


def test_few_text_positions_are_cut_or_stretched():
    position = np.random.default_rng(2).normal(size=(12, 4)).astype(np.float32)
    np.testing.assert_array_equal(resize_line(position, 5, "keep"), position[:5])
    np.testing.assert_array_equal(
        resize_line(position, 30, "keep"), resize_line(position, 30)
    )


@pytest.mark.parametrize("rule", LINES)
def test_text_positions_of_the_same_length_are_left_alone(rule):
    position = np.ones((7, 4), np.float32)
    assert resize_line(position, 7, rule) is position


@pytest.mark.parametrize("grid", [(24, 8), (27, 9), (16, 8), (12, 4), (3, 5), (8, 8)])
def test_a_square_grid_that_torch_turns_back(grid):
    rng = np.random.default_rng(3)
    position = rng.normal(size=(1 + grid[0] * grid[1], 6)).astype(np.float32)
    square, side = square_grid(position, grid)
    assert square.shape == (1 + side**2, 6) and side == max(grid)
    back = torch_grid(square, (side, side), grid, "bicubic", torch.float32)
    np.testing.assert_allclose(back, position, rtol=0, atol=5e-6)
    if grid[0] / grid[1] == 3:
        np.testing.assert_array_equal(back, position)
        np.testing.assert_array_equal(
            resize_grid(square, (side, side), grid, Interpolation.BICUBIC), position
        )
