# SPDX-License-Identifier: Apache-2.0
"""Position embeddings for other grids and caption lengths.

Each resize is a product with a small matrix of interpolation weights, those of
`torch.nn.functional.interpolate(align_corners=False)` without antialiasing.
"""

from enum import Enum

import numpy as np
from jaxtyping import Float

# Coefficient of the cubic kernel in PyTorch.
CUBIC = -0.75

LINES = ("stretch", "keep")
"""How text positions are resized, see `resize_line`."""
WELL_TRAINED = 20
"""Positions of CLIP's text tower that most of its training captions reached."""


class Interpolation(Enum):
    """Interpolation method; Hugging Face's CLIP resizes its grid bicubically."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


def interpolation_matrix(
    source: int, target: int, kind: Interpolation = Interpolation.BILINEAR
) -> Float[np.ndarray, "target source"]:
    """Return the weights that map `source` samples of a line to `target` samples."""
    place = (np.arange(target) + 0.5) * (source / target) - 0.5
    if kind is Interpolation.BILINEAR:
        place = np.maximum(place, 0.0)
    left = np.floor(place).astype(int)
    fraction = place - left
    matrix = np.zeros((target, source))
    for shift, weight in _taps(fraction, kind):
        column = np.clip(left + shift, 0, source - 1)
        np.add.at(matrix, (np.arange(target), column), weight)
    return matrix


def _taps(
    fraction: np.ndarray, kind: Interpolation
) -> list[tuple[int, Float[np.ndarray, " target"]]]:
    """Return neighbours by their offset from the left one, with their weights."""
    if kind is Interpolation.BILINEAR:
        return [(0, 1.0 - fraction), (1, fraction)]
    return [(shift, _cubic(np.abs(fraction - shift))) for shift in (-1, 0, 1, 2)]


def _cubic(distance: np.ndarray) -> np.ndarray:
    near = (CUBIC + 2) * distance**3 - (CUBIC + 3) * distance**2 + 1
    far = CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, far)


def resize_grid(
    position: Float[np.ndarray, "n w"],
    source: tuple[int, int],
    target: tuple[int, int],
    kind: Interpolation = Interpolation.BILINEAR,
) -> Float[np.ndarray, "m w"]:
    """Resize the patch rows of an image position embedding, keeping the class row.

    Args:
        position: Class row, then source[0] * source[1] patch rows, row-major.
        source: Rows and columns of the given grid.
        target: Rows and columns of the resized grid.
        kind: Interpolation method; IRRA and FMFA use bilinear.

    Raises:
        ValueError: `position` does not have 1 + rows * columns rows.
    """
    if len(position) != 1 + source[0] * source[1]:
        raise ValueError(
            f"a {source[0]} x {source[1]} grid has {1 + source[0] * source[1]} rows "
            f"with the class row, the position embedding has {len(position)}"
        )
    if source == target:
        return position
    rows = interpolation_matrix(source[0], target[0], kind)
    columns = interpolation_matrix(source[1], target[1], kind)
    return _separable(position, source, rows, columns)


def resize_line(
    position: Float[np.ndarray, "l w"], length: int, rule: str = "stretch"
) -> Float[np.ndarray, "m w"]:
    """Resize text positions to another context length.

    Args:
        position: Those of the file.
        length: Positions wanted.
        rule: "stretch" interpolates all linearly. "keep" leaves the first
            `WELL_TRAINED` as they are and stretches the others (Long-CLIP, Zhang et
            al., ECCV 2024); for a shorter context it takes the first ones.
    """
    if len(position) == length:
        return position
    if rule == "keep" and length < len(position):
        return position[:length]
    kept = WELL_TRAINED if rule == "keep" and len(position) > WELL_TRAINED else 0
    matrix = interpolation_matrix(len(position) - kept, length - kept)
    stretched = (matrix @ position[kept:].astype(np.float64)).astype(np.float32)
    return np.concatenate([position[:kept], stretched])


def square_grid(
    position: Float[np.ndarray, "n w"], grid: tuple[int, int]
) -> tuple[Float[np.ndarray, "m w"], int]:
    """Find a square grid that bicubic interpolation maps to this one.

    Hugging Face's CLIP stores a square grid and resizes it bicubically to the image,
    so a rectangular grid must be stored as one of its preimages: the one of least norm
    whose side is the longer side. If the ratio of the sides is odd (24 x 8, 27 x 9),
    the resize merely selects columns and restores the grid bit for bit.

    Returns:
        The position embedding of the square grid, and its side.
    """
    if grid[0] == grid[1]:
        return position, grid[0]
    side = max(grid)
    rows, columns = (
        np.linalg.pinv(interpolation_matrix(side, n, Interpolation.BICUBIC))
        for n in grid
    )
    return _separable(position, grid, _exact(rows), _exact(columns)), side


def _exact(matrix: np.ndarray) -> np.ndarray:
    """Remove round-off from a pseudo-inverse whose entries are all 0 or 1."""
    rounded = np.round(matrix)
    return rounded if np.allclose(matrix, rounded, rtol=0, atol=1e-9) else matrix


def _separable(
    position: np.ndarray,
    source: tuple[int, int],
    rows: np.ndarray,
    columns: np.ndarray,
) -> Float[np.ndarray, "m w"]:
    """Apply one matrix to the rows of the grid and another to its columns."""
    patches = position[1:].astype(np.float64).reshape(*source, -1)
    patches = np.einsum("rh,hwc,vw->rvc", rows, patches, columns, optimize=True)
    flat = patches.reshape(-1, position.shape[1])
    return np.concatenate([position[:1], flat]).astype(np.float32)
