"""The exact explainer and judge of the embedded world: what a scene holds is looked up."""

__all__ = ["AttributeOracle"]

from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from vit_lens.errors import ExplanationError, nearest
from vit_lens.images import picture_hash
from vit_lens.mini import shapes, world

_OVERLAY, _GROUND = world.OVERLAY_ATTRIBUTES, ("background", "pattern")


class AttributeOracle:
    """Explains and judges images of the embedded world by their scenes, exactly.

    An explanation is a value of an attribute, such as ``colour red``: the one whose share in the images shown lies most
    above its share in all that it knows; of equal ones the first in the order of the world. The judge looks the scene
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

    name = "oracle"

    def __init__(self, images: Sequence[Image.Image], scenes: Sequence[world.Scene], *, grid: tuple[int, int] = (4, 4)):
        if len(images) != len(scenes) or not scenes:
            raise ExplanationError(f"{len(images)} images and {len(scenes)} scenes; expected one scene of each image")
        self.scenes, self.grid = tuple(scenes), grid
        self._rows: dict[str, int] = {}
        for row, (image, scene) in enumerate(zip(images, scenes, strict=True)):
            if (known := self._rows.setdefault(picture_hash(image), row)) != row and scenes[known] != scene:
                raise ExplanationError(f"images {known} and {row} are alike, and their scenes are not")
        self._columns = {f"{name} {value}": (name, value) for name in world.ATTRIBUTES for value in
                         world.ATTRIBUTES[name]}  # fmt: skip
        self.values = tuple(self._columns)
        """Every explanation that there is."""
        holds = [[getattr(scene, name) == value for name, value in self._columns.values()] for scene in scenes]
        self.holds: Bool[np.ndarray, "scene value"] = np.array(holds)
        """Of which scenes each of them holds."""

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

    def explain(self, images: Sequence[Image.Image], maps: Sequence[Tensor]) -> str:
        """Return the value with most lift over its base rate in these images; the maps do not matter."""
        if not images:
            raise ExplanationError("no images to explain; give at least one")
        lift = self.holds[[self._row(image) for image in images]].mean(0) - self.holds.mean(0)
        return self.values[int(lift.argmax())]

    def judge(self, image: Image.Image, text: str, map: Tensor | None = None) -> float:
        """Return 1 where the value holds of the scene, else 0."""
        name, value = self._value(text)
        return float(getattr(self.scenes[self._row(image)], name) == value)

    def localise(self, image: Image.Image, text: str) -> Float[Tensor, "grid_row grid_column"]:
        """Return 1 at the patches on which the value is drawn, else 0; 0 everywhere where it does not hold."""
        name, value = self._value(text)
        scene = self.scenes[self._row(image)]
        if getattr(scene, name) != value:
            return torch.zeros(self.grid)
        part = "overlay" if name in _OVERLAY else "ground" if name in _GROUND else "object"
        place = scene.shape, scene.size, scene.row, scene.column, scene.symbol, scene.corner
        shares = _shares(*place, self.grid)[part]
        return torch.from_numpy(shares >= shares.max() / 2).float()

    def _row(self, image: Image.Image) -> int:
        if (row := self._rows.get(picture_hash(image))) is None:
            raise ExplanationError(
                f"the oracle does not know this image of {image.size[0]} x {image.size[1]} pixels; it knows "
                f"{len(self.scenes)} scenes of the embedded world: give it these images with their scenes, or take "
                "PipelineVLM or EndpointVLM"
            )
        return row

    def _value(self, text: str) -> tuple[str, str]:
        if text not in self._columns:
            raise ExplanationError(
                f"no value {text!r:.80} in the embedded world; nearest: {nearest(text, self.values)}"
            )
        return self._columns[text]


@lru_cache(maxsize=8192)
def _shares(
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
    return {name: _by_patch(part, grid) for name, part in parts.items()}


def _by_patch(
    part: Float[np.ndarray, "height width"], grid: tuple[int, int]
) -> Float[np.ndarray, "grid_row grid_column"]:
    rows, columns = (np.arange(side) * n // side for side, n in zip(part.shape, grid, strict=True))
    total, count = np.zeros(grid), np.zeros(grid)
    np.add.at(total, np.ix_(rows, columns), part)
    np.add.at(count, np.ix_(rows, columns), 1.0)
    return total / count
