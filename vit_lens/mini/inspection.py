"""The exact judge of still lifes: least squares over every picture that the world can show."""

__all__ = ["Inspection", "inspect"]

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from vit_lens.mini.still_life import LAYOUTS, N_OBJECTS, SIDE, Layout, Scene, draw_object, window

_LEVELS = 255.0
_CHUNK = 256
_MOVES = tuple(product((0, 0.5, 1, 1.5, 2), repeat=2))  # coarser than the world's: a drawn object may stand anywhere


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What the judge sees in pictures.

    Attributes:
        layouts: Number of the layout in ``LAYOUTS``.
        objects: Numbers of the objects at the first and second place; -1 at the second of a scene of one.
        residuals: Mean squared difference to the nearest of these pictures, of values in [0, 1]. The judge always
            answers; this says whether there is a scene at all.
    """

    layouts: Int[np.ndarray, " picture"]
    objects: Int[np.ndarray, "picture 2"]
    residuals: Float[np.ndarray, " picture"]

    @property
    def scenes(self) -> list[Scene]:
        """The scenes that the pictures show."""
        return [
            Scene(LAYOUTS[layout], tuple(int(number) for number in row if number >= 0))
            for layout, row in zip(self.layouts, self.objects, strict=True)
        ]

    def shows(self, scenes: list[Scene]) -> Bool[np.ndarray, " picture"]:
        """Whether each picture shows the scene that it should, layout and every object."""
        return np.array([seen == scene for seen, scene in zip(self.scenes, scenes, strict=True)])


def inspect(pictures: UInt8[np.ndarray, "picture height width 3"]) -> Inspection:
    """Find the scene that is nearest to each picture, among all layouts, objects and moves by halves of a pixel.

    An object of the world that stands between two such moves has a residual of up to .005.

    >>> from vit_lens.mini.inspection import inspect
    >>> from vit_lens.mini.still_life import Scene, draw
    >>> found = inspect(draw([Scene("beside", (3, 70)), Scene("alone", (12,))]))
    >>> found.scenes, found.residuals.round(6)
    ([Scene(layout='beside', objects=(3, 70)), Scene(layout='alone', objects=(12,))], array([0., 0.]))
    """
    parts = [_inspect(pictures[i : i + _CHUNK]) for i in range(0, len(pictures), _CHUNK)]
    layouts, objects, residuals = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Inspection(layouts=layouts, objects=objects, residuals=residuals)


def _inspect(
    pictures: UInt8[np.ndarray, "picture height width 3"],
) -> tuple[Int[np.ndarray, " picture"], Int[np.ndarray, "picture 2"], Float[np.ndarray, " picture"]]:
    n = len(pictures)
    objects = np.full((len(LAYOUTS), n, 2), -1)
    errors = np.zeros((len(LAYOUTS), n))
    for index, layout in enumerate(LAYOUTS):
        for place in range(1 if layout == "alone" else 2):
            seen = pictures[(slice(None), *window(layout, place))].reshape(n, -1) / _LEVELS
            templates, squares = _templates(layout, place)
            best = (squares - 2 * seen @ templates.T).argmin(axis=1)
            objects[index, :, place] = best // len(_MOVES)
            errors[index] += np.square(seen - templates[best]).sum(axis=1)
    layouts, every = errors.argmin(axis=0), np.arange(n)
    return layouts, objects[layouts, every], errors[layouts, every] / (SIDE * SIDE * 3)


@lru_cache
def _templates(
    layout: Layout, place: int
) -> tuple[Float[np.ndarray, "template value"], Float[np.ndarray, " template"]]:
    """Every object with every move in its part of the picture, and the squares' sums."""
    drawn = [draw_object(number, layout, place, move) for number in range(N_OBJECTS) for move in _MOVES]
    templates = np.stack([picture.ravel() for picture in drawn]) / _LEVELS
    return templates, np.square(templates).sum(axis=1)
