"""The exact explainer and judge of the embedded world: what a scene holds is looked up."""

__all__ = ["AttributeOracle"]

from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from vit_lens.explaining.looked_up import LookedUp, by_patch
from vit_lens.mini import shapes, world

_OVERLAY, _GROUND = world.OVERLAY_ATTRIBUTES, ("background", "pattern")


class AttributeOracle(LookedUp):
    """Explains and judges images of the embedded world by their scenes, exactly.

    An explanation is a value of an attribute, such as ``colour red``: the one whose share in the images shown lies most
    above its share in all that it knows; of equal floats the first in the order of the world. The judge looks the scene
    up. A value is at the patches on which it is drawn: those of the object, of the overlay, or else all the background;
    a patch counts that shows at least half as much of these as the one that shows most.

    Args:
        images: The images, as the tower sees them.
        scenes: Their scenes.
        grid: Rows and columns of patches.

    Raises:
        ExplanationError: Not every image has its scene, or two that are alike have different ones.

    >>> scenes = world.sample_scenes(30, np.random.default_rng(0))
    >>> pictures = list(map(Image.fromarray, world.render(scenes)))
    >>> oracle = AttributeOracle(pictures, scenes)
    >>> red = [one for one, scene in zip(pictures, scenes) if scene.colour == "red"]
    >>> oracle.explain(red, [torch.zeros(4, 4)] * len(red))
    'colour red'
    >>> oracle.judge(red[0], "colour red"), oracle.judge(red[0], "colour blue")
    (1.0, 0.0)
    >>> oracle.localise(red[0], "colour red").shape
    torch.Size([4, 4])
    """

    def __init__(self, images: Sequence[Image.Image], scenes: Sequence[world.Scene], *, grid: tuple[int, int] = (4, 4)):
        columns = [(name, value) for name, values in world.ATTRIBUTES.items() for value in values]
        holds = [[getattr(scene, name) == value for name, value in columns] for scene in scenes]
        held = np.array(holds, dtype=bool).reshape(len(scenes), len(columns))
        super().__init__(images, [f"{name} {value}" for name, value in columns], held, grid)
        self.scenes = tuple(scenes)

    @classmethod
    def of_world(cls, n: int, *, seed: int = 0) -> "AttributeOracle":
        """Return one that knows some scenes of the world that no training has seen, all different; see ``pictures``.

        Args:
            n: How many.
            seed: The seed of the draw.

        >>> AttributeOracle.of_world(20).pictures[0].size
        (64, 64)
        """
        codes, generator = {}, np.random.default_rng([seed, 27])
        while len(codes) < n:
            drawn = world.sample_codes(n, generator, held_out=True)
            codes |= {row.tobytes(): row for row in drawn[: n - len(codes)]}
        scenes = world.decode(np.stack(list(codes.values())))
        pictures = cls.pictures_of(scenes)
        made = cls(pictures, scenes)
        made.pictures = pictures
        return made

    @cached_property
    def pictures(self) -> list[Image.Image]:
        """The images, drawn from the scenes."""
        return self.pictures_of(self.scenes)

    @staticmethod
    def pictures_of(scenes: Sequence[world.Scene]) -> list[Image.Image]:
        """Return scenes as the tower of the embedded model sees them.

        Args:
            scenes: The scenes.
        """
        return [Image.fromarray(one) for one in world.render(scenes)]

    def _lift(self, shown: Bool[np.ndarray, "image value"]) -> Float[np.ndarray, " value"]:
        """Return differences of shares; rounding may tell equal ones apart, and studies were measured so."""
        return shown.mean(0) - self.holds.mean(0)

    def _shares(self, row: int, value: str) -> Float[np.ndarray, "grid_row grid_column"]:
        name, scene = value.partition(" ")[0], self.scenes[row]
        part = "overlay" if name in _OVERLAY else "ground" if name in _GROUND else "object"
        place = scene.shape, scene.size, scene.row, scene.column, scene.symbol, scene.corner
        return _parts(*place, self.grid)[part]


@lru_cache(maxsize=8192)
def _parts(
    shape: str, size: str, row: str, column: str, symbol: str | None, corner: str | None, grid: tuple[int, int]
) -> dict[str, Float[np.ndarray, "grid_row grid_column"]]:
    """Return how much of each patch shows the object, the overlay and the background."""
    x, y = shapes.pixel_centres(shapes.CANVAS)
    middle = [shapes.cell_centre(world.ATTRIBUTES[name].index(at)) for name, at in (("column", column), ("row", row))]
    distance = shapes.shape_distance(shape, x - middle[0], y - middle[1], radius=shapes.RADII[size])
    body, plate = np.clip(0.5 - distance, 0, 1), np.zeros_like(x)
    if symbol is not None and corner is not None:
        plate = shapes.symbol_plate(symbol, corner, x, y)[0]
    parts = {"object": body * (1 - plate), "overlay": plate, "ground": (1 - body) * (1 - plate)}
    return {name: by_patch(part, grid) for name, part in parts.items()}
