# SPDX-License-Identifier: Apache-2.0
"""One picture of one person: background, figure, occluder and light, in that order."""

import numpy as np
from PIL import Image

from data_pipeline.synthetic.attributes import Identity
from data_pipeline.synthetic.figure import draw_figure
from data_pipeline.synthetic.painter import Painter
from data_pipeline.synthetic.pose import pose
from data_pipeline.synthetic.scene import (
    Shot,
    draw_background,
    draw_occluder,
    expose,
)

# Figures are drawn this many times larger and averaged down, to smooth the edges.
_SUPERSAMPLING = 2


def photograph(
    person: Identity,
    shot: Shot,
    rng: np.random.Generator,
    *,
    image_size: tuple[int, int],
    posed_as: Identity | None = None,
) -> Image.Image:
    """Draw a person in a shot.

    Nothing random depends on the person: two people in the same shot, with generators
    in the same state, differ only where they are dressed differently.

    Args:
        person: Who is drawn.
        shot: The circumstances.
        rng: Draws the background, an occluder, light and noise.
        image_size: (height, width) of the picture.
        posed_as: Whose body and arms are posed, if not the person's own.

    Returns:
        An RGB picture.
    """
    height, width = image_size
    background = draw_background(rng, style=shot.style, size=(width, height))
    canvas = background.resize(
        (width * _SUPERSAMPLING, height * _SUPERSAMPLING), Image.Resampling.BILINEAR
    )
    painter = Painter(
        canvas,
        centre=shot.centre * canvas.width,
        top=shot.top * canvas.height,
        unit=shot.scale * canvas.height,
        mirror=shot.mirror,
    )
    painter.shadow(_ground_shadow(), 0.22)
    body = pose(posed_as or person, view=shot.view, stride=shot.stride)
    draw_figure(painter, person, body)
    draw_occluder(rng, canvas, shot)
    return expose(rng, canvas.reduce(_SUPERSAMPLING), shot.style)


def _ground_shadow() -> list[tuple[float, float]]:
    """Return a flat ellipse under the feet, in the person's units."""
    turns = np.linspace(0.0, 2 * np.pi, 16, endpoint=False)
    return [
        (0.17 * float(np.cos(turn)), 0.985 + 0.02 * float(np.sin(turn)))
        for turn in turns
    ]
