"""Paint scenes, given as rows of value indices, from precomputed tables of masks."""

__all__ = ["INK", "PAPER", "render_codes"]

from functools import lru_cache

import numpy as np
from jaxtyping import Int, UInt8

from vit_lens.mini import shapes
from vit_lens.mini.attributes import ATTRIBUTES

_COLOURS = {
    "red": (226, 32, 36),
    "orange": (255, 136, 0),
    "yellow": (250, 224, 20),
    "green": (30, 160, 50),
    "cyan": (0, 200, 215),
    "blue": (35, 70, 235),
    "purple": (135, 35, 190),
    "pink": (255, 95, 180),
}
_BACKGROUNDS = {
    "white": (250, 250, 250),
    "grey": (165, 165, 165),
    "sand": (228, 200, 150),
    "sky": (165, 205, 250),
    "mint": (170, 235, 185),
    "lilac": (215, 180, 245),
}
INK = np.array((24, 22, 30), dtype=np.float32)
PAPER = np.array((255, 255, 255), dtype=np.float32)
_OUTLINE = 1.6


def render_codes(
    codes: Int[np.ndarray, "scene attribute"], *, size: int = shapes.CANVAS
) -> UInt8[np.ndarray, "scene height width 3"]:
    """Draw scenes given as rows of value indices."""
    grounds, bodies, textures, plates = _tables(size)
    shape, colour, texture, scale, row, column, background, pattern, symbol, corner = codes.T
    paint = np.array(list(_COLOURS.values()), dtype=np.float32)[colour][:, None, None]
    ink = textures[texture, row, column][..., None]
    body = bodies[shape, scale, row, column]
    fill, outline = body[..., :1], body[..., 1:]
    pixels = paint + ink * (INK - paint)
    pixels += outline * (INK - pixels)
    ground = grounds[background, pattern]
    pixels = ground + fill * (pixels - ground)
    marked = np.flatnonzero(symbol >= 0)
    plate = plates[symbol[marked], corner[marked]]
    cover, black = plate[..., :1], plate[..., 1:]
    pixels[marked] += cover * (PAPER + black * (INK - PAPER) - pixels[marked])
    return np.rint(pixels).clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=4)
def _tables(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    x, y = shapes.pixel_centres(size)
    soft = shapes.CANVAS / size
    thirds = range(3)
    centres = [[(x - shapes.cell_centre(column), y - shapes.cell_centre(row)) for column in thirds] for row in thirds]
    grounds = [
        [shapes.background_shade(pattern, x, y)[..., None] * np.array(colour) for pattern in ATTRIBUTES["pattern"]]
        for colour in _BACKGROUNDS.values()
    ]
    distances = np.array(
        [
            [
                [
                    [shapes.shape_distance(shape, *centre, radius=shapes.RADII[scale]) for centre in line]
                    for line in centres
                ]
                for scale in ATTRIBUTES["size"]
            ]
            for shape in ATTRIBUTES["shape"]
        ]
    )
    fill = np.clip(0.5 - distances / soft, 0, 1)
    bodies = np.stack([fill, np.clip(0.5 + (distances + _OUTLINE) / soft, 0, 1)], axis=-1)
    textures = [
        [[shapes.texture_mask(texture, *centre) for centre in line] for line in centres]
        for texture in ATTRIBUTES["texture"]
    ]
    plates = [
        [np.stack(shapes.symbol_plate(symbol, corner, x, y), axis=-1) for corner in ATTRIBUTES["corner"]]
        for symbol in ATTRIBUTES["symbol"]
    ]
    single = [np.array(table, dtype=np.float32) for table in (grounds, bodies, textures, plates)]
    return single[0], single[1], single[2], single[3]
