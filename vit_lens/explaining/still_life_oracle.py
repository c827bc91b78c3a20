"""The exact explainer and judge of pictures that the embedded text-to-image models draw."""

__all__ = ["StillLifeOracle"]

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from PIL import Image

from vit_lens.errors import ExplanationError
from vit_lens.explaining.looked_up import LookedUp, by_patch
from vit_lens.mini import inspection, still_life

_PLACES = {"alone": ("middle",), "beside": ("left", "right"), "stacked": ("top", "bottom")}
_PARTS = {"colour": tuple(still_life.COLOURS), "texture": still_life.TEXTURES, "shape": still_life.SHAPES}
_ANYWHERE = [f"{part} {value}" for part, values in _PARTS.items() for value in values]
_VALUES = (
    *_ANYWHERE, *(f"layout {layout}" for layout in still_life.LAYOUTS),
    *(f"{value} at {place}" for places in _PLACES.values() for place in places for value in _ANYWHERE),
)  # fmt: skip


class StillLifeOracle(LookedUp):
    """Explains and judges pictures of one object or two by their scenes, exactly.

    An explanation is a value: ``colour red``, ``texture striped``, ``shape ring`` (of any object), ``layout beside``,
    or what an object at a place has, ``colour red at left``. It is the one whose share in the pictures shown lies most
    above its share in all that it knows; of equal ones the first in this order. A value is at the patches on which an
    object of it is drawn, a layout at those of all objects; a patch counts that shows at least half as much of these as
    the one that shows most.

    Args:
        images: The pictures.
        scenes: Their scenes.
        grid: Rows and columns of patches.

    Raises:
        ExplanationError: Not every picture has its scene, or two that are alike have different ones.

    >>> from vit_lens.mini import still_life
    >>> scenes = [still_life.Scene("beside", (3, 70)), still_life.Scene("alone", (12,))]
    >>> oracle = StillLifeOracle(list(map(Image.fromarray, still_life.draw(scenes))), scenes)
    >>> oracle.judge(oracle.pictures[0], "colour red"), oracle.judge(oracle.pictures[0], "colour red at right")
    (1.0, 0.0)
    >>> oracle.localise(oracle.pictures[0], "colour red").sum(0).tolist()
    [1.0, 1.0, 0.0, 0.0]
    """

    def __init__(
        self, images: Sequence[Image.Image], scenes: Sequence[still_life.Scene], *, grid: tuple[int, int] = (4, 4)
    ):
        holds = [[value in shown for value in _VALUES] for shown in map(_shown, scenes)]
        super().__init__(images, _VALUES, np.array(holds, dtype=bool).reshape(len(scenes), len(_VALUES)), grid)
        self.scenes, self.pictures = tuple(scenes), list(images)
        self.kept = tuple(range(len(scenes)))
        """Which of the pictures that were given it knows: all, or of :meth:`of_drawn` those that are a scene."""

    @classmethod
    def of_drawn(
        cls, pictures: Sequence[Image.Image], model: str = "mini-flux", *, grid: tuple[int, int] = (4, 4)
    ) -> "StillLifeOracle":
        """Return one that knows pictures by what the exact judge reads in them; what is no scene it leaves out.

        Args:
            pictures: The pictures that a model drew; each side is a multiple of the world's 32 pixels.
            model: Which model, for the residual above which a picture is no scene: ``mini-flux``, ``mini-sd``, or a
                folder that ``vit-lens mini train-flux`` made.
            grid: Rows and columns of patches.

        Returns:
            An oracle of the pictures that are a scene: ``pictures``, and ``kept``, which of those that were given.

        Raises:
            ExplanationError: No picture is a scene, their sides are others, or the limit is not known.

        >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
        >>> oracle = StillLifeOracle.of_drawn(sd(["a red solid star", "a blue striped ring"]), "mini-sd")
        >>> oracle.scenes[0].layout, len(oracle.values)
        ('alone', 99)
        """
        limit = inspection.residual_limit(model, ExplanationError)
        if len({picture.size for picture in pictures}) != 1:
            raise ExplanationError(f"{len(pictures)} pictures of different sizes; give some of one size")
        small = inspection.reduced(
            np.stack([np.asarray(one.convert("RGB"), dtype=np.float64) for one in pictures]), ExplanationError
        )
        seen = inspection.inspect(small)
        kept = np.flatnonzero(seen.residuals <= limit).tolist()
        if not kept:
            raise ExplanationError(
                f"none of {len(pictures)} pictures is a scene of the embedded world (residuals from "
                f"{seen.residuals.min():.2g}, at most {limit:.2g}): were they drawn by {model}, in its own size "
                "and steps?"
            )
        made = cls([pictures[k] for k in kept], [seen.scenes[k] for k in kept], grid=grid)
        made.kept = tuple(kept)
        return made

    def _shares(self, row: int, value: str) -> Float[np.ndarray, "grid_row grid_column"]:
        scene = self.scenes[row]
        places = range(len(scene.objects))
        whose = tuple(k for k in places if value.startswith("layout ") or value in _said(scene, k))
        shapes = tuple(still_life.object_of(number)[2] for number in scene.objects)
        return _covered(scene.layout, shapes, whose, self.grid)


def _said(scene: still_life.Scene, place: int) -> set[str]:
    """Return the values that hold of the object at a place."""
    said = [f"{part} {value}" for part, value in zip(_PARTS, still_life.object_of(scene.objects[place]), strict=True)]
    return {*said, *(f"{one} at {_PLACES[scene.layout][place]}" for one in said)}


def _shown(scene: still_life.Scene) -> set[str]:
    """Return the values that hold of a scene."""
    return {f"layout {scene.layout}"}.union(*(_said(scene, place) for place in range(len(scene.objects))))


@lru_cache(maxsize=8192)
def _covered(
    layout: still_life.Layout, shapes: tuple[str, ...], whose: tuple[int, ...], grid: tuple[int, int]
) -> Float[np.ndarray, "grid_row grid_column"]:
    """Return how much of each patch some of a scene's objects cover; where exactly they were moved to is left out."""
    pixels = np.zeros((still_life.SIDE, still_life.SIDE))
    for place in whose:
        pixels[still_life.window(layout, place)] = still_life.covered(shapes[place], layout, place)
    return by_patch(pixels, grid)
