"""Coverage masks of the procedural world's shapes, textures, backgrounds and symbols.

Lengths are in units of a 64-pixel canvas, whatever the size that is asked for.
"""

__all__ = [
    "CANVAS",
    "CELL",
    "RADII",
    "background_shade",
    "cell_centre",
    "pixel_centres",
    "shape_distance",
    "symbol_plate",
    "texture_mask",
]

import math

import numpy as np
from jaxtyping import Float

CANVAS = 64
CELL = 12.0
RADII = {"small": 12.0, "medium": 15.2, "large": 18.5}
PLATE = 15.0
SYMBOL_RADIUS = 4.6

Grid = Float[np.ndarray, "height width"]
Points = Float[np.ndarray, "point 2"]


def pixel_centres(size: int) -> tuple[Grid, Grid]:
    """Give the x and y coordinate of every pixel's centre, in canvas units."""
    line = (np.arange(size) + 0.5) * CANVAS / size
    x, y = np.meshgrid(line, line)
    return x, y


def cell_centre(index: int) -> float:
    """Give the coordinate of row or column 0, 1 or 2 of the 3 x 3 positions."""
    return CANVAS / 2 + (index - 1) * CELL


def shape_distance(shape: str, x: Grid, y: Grid, *, radius: float) -> Grid:
    """Give the signed distance (negative inside) to a shape or symbol centred at 0."""
    if shape == "ring":
        reach = np.hypot(x, y)
        return np.maximum(reach - radius, 0.48 * radius - reach)
    return polygon_distance(x, y, _OUTLINES[shape]() * radius)


def polygon_distance(x: Grid, y: Grid, points: Points) -> Grid:
    """Give the signed distance (negative inside) to a closed polygon."""
    nearest = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        edge_x, edge_y = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * edge_x + (y - y0) * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - x0 - along * edge_x, y - y0 - along * edge_y))
        crosses = (y0 > y) != (y1 > y)
        inside ^= crosses & ((x - x0) * edge_y * np.sign(edge_y) < (y - y0) * edge_x * np.sign(edge_y))
    return np.where(inside, -nearest, nearest)


def texture_mask(texture: str, x: Grid, y: Grid) -> Grid:
    """Give the share of dark ink at each pixel of an object centred at 0."""
    if texture == "solid":
        return np.zeros_like(x)
    if texture == "striped":
        return _soft(np.abs(y % 8.0 - 4.0) - 2.0)
    if texture == "dotted":
        return _soft(np.hypot((x + 4.0) % 8.0 - 4.0, (y + 4.0) % 8.0 - 4.0) - 2.6)
    if texture == "checkered":
        side = 6.0
        wave_x = np.abs((x + side / 2) % (2 * side) - side) - side / 2
        wave_y = np.abs((y + side / 2) % (2 * side) - side) - side / 2
        across, down = _soft(wave_x), _soft(wave_y)
        return across * (1 - down) + down * (1 - across)
    if texture in ("dipped", "shaded"):  # the lower or the right half
        return _soft(-(y if texture == "dipped" else x))
    raise ValueError(f"no texture {texture!r}; expected solid, striped, dotted, checkered, dipped or shaded")


def background_shade(pattern: str, x: Grid, y: Grid) -> Grid:
    """Give the factor by which a background pattern darkens the background colour."""
    if pattern == "plain":
        return np.ones_like(x)
    if pattern == "hatched":
        return 1 - 0.22 * _soft(np.abs((x + y) % 12.0 - 6.0) - 2.2)
    if pattern == "faded":
        return 1 - 0.45 * y / CANVAS
    raise ValueError(f"no background pattern {pattern!r}; expected plain, hatched or faded")


def symbol_plate(symbol: str, corner: str, x: Grid, y: Grid) -> tuple[Grid, Grid]:
    """Give the coverage of the overlay's plate, and the share of black ink on it."""
    low, high = PLATE / 2 + 0.5, CANVAS - PLATE / 2 - 0.5
    dx = x - (low if "left" in corner else high)
    dy = y - (low if "top" in corner else high)
    plate = np.maximum(np.abs(dx), np.abs(dy)) - PLATE / 2
    ink = np.maximum(_soft(shape_distance(symbol, dx, dy, radius=SYMBOL_RADIUS)), _soft(-1.5 - plate))
    return _soft(plate), ink


def _soft(distance: Grid) -> Grid:
    return np.clip(0.5 - distance, 0.0, 1.0)


def _regular(n_points: int, *, turn: float = -math.pi / 2) -> Points:
    angles = turn + np.arange(n_points) * 2 * math.pi / n_points
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> Points:
    return _regular(10) * np.where(np.arange(10) % 2, 0.45, 1.08)[:, None]


def _plus(arm: float = 0.34) -> Points:
    corner = [(1, -arm), (1, arm), (arm, arm), (arm, 1)]
    turns = [
        np.array([(c * px - s * py, s * px + c * py) for px, py in corner[1:]])
        for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))
    ]
    return np.concatenate(turns)


def _heart() -> Points:
    t = np.arange(40) * 2 * math.pi / 40
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.0], axis=1) / 15.5


def _moon() -> Points:
    outer = np.linspace(0.25 * math.pi, 1.75 * math.pi, 40)
    inner = np.linspace(1.75 * math.pi, 0.25 * math.pi, 30)[1:-1]
    tip = math.sin(0.25 * math.pi)
    far = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    bend = np.arctan2(tip, math.cos(0.25 * math.pi) - 0.55)
    angles = np.linspace(2 * math.pi - bend, bend, len(inner) + 2)[1:-1]
    reach = math.hypot(tip, math.cos(0.25 * math.pi) - 0.55)
    near = np.stack([0.55 + reach * np.cos(angles), reach * np.sin(angles)], axis=1)
    return np.concatenate([far, near]) + np.array([0.08, 0.0])


def _turned(points: Points, angle: float) -> Points:
    c, s = math.cos(angle), math.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


_OUTLINES = {
    "circle": lambda: _regular(48),
    "square": lambda: _regular(4, turn=math.pi / 4) * 1.2,
    "triangle": lambda: _regular(3) * 1.18 + np.array([0.0, 0.2]),
    "star": _star,
    "heart": _heart,
    "cross": _plus,
    "moon": _moon,
    "dot": lambda: _regular(24),
    "bar": lambda: np.array([(-1.1, -0.4), (1.1, -0.4), (1.1, 0.4), (-1.1, 0.4)]),
    "plus": _plus,
    "saltire": lambda: _turned(_plus(0.28) * 1.15, math.pi / 4),
    "wedge": lambda: _regular(3, turn=math.pi / 2) * 1.1 - np.array([0.0, 0.15]),
}
