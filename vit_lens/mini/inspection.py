"""The exact judge of still lifes: least squares over every picture that the world can show."""

__all__ = ["Inspection", "inspect", "reduced", "residual_limit"]

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from vit_lens.errors import VitLensError
from vit_lens.files import read_json
from vit_lens.identity import EMBEDDED_PIPELINES
from vit_lens.mini.still_life import LAYOUTS, N_OBJECTS, SIDE, Layout, Scene, draw_object, window

_LEVELS = 255.0
_CHUNK = 256
_COARSE = tuple(product((-0.25, 0.0, 0.25), repeat=2))
_FINER = (0.125, 0.0625)  # down to the world's own steps


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


def residual_limit(model: str, error: type[VitLensError] = VitLensError) -> float:
    """Return the residual above which a picture of a model of the embedded world is no scene.

    Args:
        model: ``mini-flux``, ``mini-sd``, or a folder that ``vit-lens mini train-flux`` or ``train-text`` made.
        error: The error to raise.

    Raises:
        VitLensError: ``error``: it is none of these.

    >>> from vit_lens.mini.inspection import residual_limit
    >>> round(residual_limit("mini-flux"), 5)
    0.00024
    """
    path = EMBEDDED_PIPELINES.get(model, Path(model).expanduser()) / "metrics.json"
    advice = "give mini-flux, mini-sd, or a folder that `vit-lens mini train-flux` or `train-text` made"
    limit = read_json(path, error, advice).get("residual_limit")
    if not isinstance(limit, float):
        raise error(f"{path} says no residual_limit; {advice}")
    return limit


def reduced(
    pictures: Float[np.ndarray, "picture tall wide 3"], error: type[VitLensError] = VitLensError
) -> UInt8[np.ndarray, "picture height width 3"]:
    """Return pictures with each square of pixels as its mean, so that they have the world's own side.

    Args:
        pictures: Values from 0 to 255.
        error: The error to raise.

    Raises:
        VitLensError: ``error``: their sides are no multiple of the world's.

    >>> from vit_lens.mini.inspection import reduced
    >>> reduced(np.full((1, 64, 64, 3), 7.0)).shape
    (1, 32, 32, 3)
    """
    n, height, width, _ = pictures.shape
    times = height // SIDE
    if (height, width) != (times * SIDE,) * 2 or not times:
        raise error(f"pictures of {height} x {width} pixels; the judge reads multiples of {SIDE}")
    squares = pictures.reshape(n, SIDE, times, SIDE, times, 3)
    return np.rint(squares.mean((2, 4))).astype(np.uint8)


def inspect(pictures: UInt8[np.ndarray, "picture height width 3"]) -> Inspection:
    """Find the scene that is nearest to each picture, of all that the world can show: first coarse moves, then finer.

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
    objects, moves = np.full((len(LAYOUTS), n, 2), -1), np.zeros((len(LAYOUTS), n, 2), dtype=int)
    errors = np.zeros((len(LAYOUTS), n))
    for index, layout in enumerate(LAYOUTS):
        for place in range(_n_places(layout)):
            seen = pictures[(slice(None), *window(layout, place))].reshape(n, -1) / _LEVELS
            templates, squares = _templates(layout, place)
            best = (squares - 2 * seen @ templates.T).argmin(axis=1)
            objects[index, :, place], moves[index, :, place] = np.divmod(best, len(_COARSE))
            errors[index] += np.square(seen - templates[best]).sum(axis=1)
    layouts, every = errors.argmin(axis=0), np.arange(n)
    objects, moves = objects[layouts, every], moves[layouts, every]
    finest = [_finest(pictures[i], LAYOUTS[layouts[i]], objects[i], moves[i]) for i in range(n)]
    return layouts, objects, np.array(finest) / (SIDE * SIDE * 3)


def _n_places(layout: Layout) -> int:
    return 1 if layout == "alone" else 2


def _finest(
    picture: UInt8[np.ndarray, "height width 3"],
    layout: Layout,
    objects: Int[np.ndarray, "2"],
    moves: Int[np.ndarray, "2"],
) -> float:
    """Move each object to where it is nearest to the picture; return the squared difference that is left."""
    return sum(
        _finest_window(picture[window(layout, place)], layout, place, int(objects[place]), _COARSE[moves[place]])
        for place in range(_n_places(layout))
    )


def _finest_window(
    seen: UInt8[np.ndarray, "height width 3"], layout: Layout, place: int, number: int, move: tuple[float, float]
) -> float:
    def error(move: tuple[float, float]) -> float:
        return float(np.square((draw_object(number, layout, place, move) - seen.astype(float)) / _LEVELS).sum())

    for step in _FINER:
        across, down = ([max(-0.25, min(0.25, along + side * step)) for side in (-1, 0, 1)] for along in move)
        move = min(((x, y) for x in across for y in down), key=error)
    return error(move)


@lru_cache
def _templates(
    layout: Layout, place: int
) -> tuple[Float[np.ndarray, "template value"], Float[np.ndarray, " template"]]:
    """Every object with every move in its part of the picture, and the squares' sums."""
    drawn = [draw_object(number, layout, place, move) for number in range(N_OBJECTS) for move in _COARSE]
    templates = np.stack([picture.ravel() for picture in drawn]) / _LEVELS
    return templates, np.square(templates).sum(axis=1)
