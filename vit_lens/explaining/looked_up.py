"""What oracles of embedded worlds share: pictures whose scenes are known, and of each scene which values hold."""

__all__ = ["LookedUp", "by_patch"]

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Num
from PIL import Image
from torch import Tensor

from vit_lens.errors import ExplanationError, nearest
from vit_lens.images import picture_hash


class LookedUp(ABC):
    """Explains and judges pictures by what is known to hold of each.

    An explanation is one of the values: the one whose share in the pictures shown lies most above its share in all; of
    equal ones the first. A patch is marked that shows at least half as much of a value as the one that shows most.

    Args:
        images: The pictures.
        values: Every explanation that there is.
        holds: Of which pictures each of them holds.
        grid: Rows and columns of patches.

    Raises:
        ExplanationError: Not every picture has its scene, or two that are alike have different ones.
    """

    name = "oracle"

    def __init__(
        self, images: Sequence[Image.Image], values: Sequence[str], holds: Bool[np.ndarray, "scene value"],
        grid: tuple[int, int],
    ):  # fmt: skip
        if len(images) != len(holds) or not len(holds):
            raise ExplanationError(f"{len(images)} images and {len(holds)} scenes; expected one scene of each image")
        self.grid, self.values = grid, tuple(values)
        self.holds: Bool[np.ndarray, "scene value"] = holds
        """Of which scenes each of the values holds."""
        self._columns = {value: column for column, value in enumerate(self.values)}
        self._rows: dict[str, int] = {}
        for row, image in enumerate(images):
            if (known := self._rows.setdefault(picture_hash(image), row)) != row and (holds[known] != holds[row]).any():
                raise ExplanationError(f"images {known} and {row} are alike, and their scenes are not")

    def explain(self, images: Sequence[Image.Image], maps: Sequence[Tensor]) -> str:
        """Return the value with most lift over its base rate in these images; the maps do not matter."""
        if not images:
            raise ExplanationError("no images to explain; give at least one")
        return self.values[int(self._lift(self.holds[[self._row(image) for image in images]]).argmax())]

    def judge(self, image: Image.Image, text: str, map: Tensor | None = None) -> float:
        """Return 1 where the value holds of the scene, else 0."""
        column = self._column(text)
        return float(self.holds[self._row(image), column])

    def localise(self, image: Image.Image, text: str) -> Float[Tensor, "grid_row grid_column"]:
        """Return 1 at the patches on which the value is drawn, else 0; 0 everywhere where it does not hold."""
        column, row = self._column(text), self._row(image)
        if not self.holds[row, column]:
            return torch.zeros(self.grid)
        shares = self._shares(row, text)
        return torch.from_numpy(shares >= shares.max() / 2).float()

    def _lift(self, shown: Bool[np.ndarray, "image value"]) -> Num[np.ndarray, " value"]:
        """Return how much more often each value holds of what is shown, in whole numbers: equal ones are equal."""
        return shown.sum(0) * len(self.holds) - self.holds.sum(0) * len(shown)

    @abstractmethod
    def _shares(self, row: int, value: str) -> Float[np.ndarray, "grid_row grid_column"]:
        """Return how much of each patch of a scene shows a value that holds of it."""

    def _row(self, image: Image.Image) -> int:
        if (row := self._rows.get(picture_hash(image))) is None:
            raise ExplanationError(
                f"the oracle does not know this image of {image.size[0]} x {image.size[1]} pixels; it knows "
                f"{len(self.holds)} scenes of the embedded world: give it these images with their scenes, or take "
                "PipelineVLM or EndpointVLM"
            )
        return row

    def _column(self, text: str) -> int:
        if text not in self._columns:
            raise ExplanationError(
                f"no value {text!r:.80} in the embedded world; nearest: {nearest(text, self.values)}"
            )
        return self._columns[text]


def by_patch(
    part: Float[np.ndarray, "height width"], grid: tuple[int, int]
) -> Float[np.ndarray, "grid_row grid_column"]:
    """Return the mean of the pixels of each patch."""
    rows, columns = (np.arange(side) * n // side for side, n in zip(part.shape, grid, strict=True))
    total, count = np.zeros(grid), np.zeros(grid)
    np.add.at(total, np.ix_(rows, columns), part)
    np.add.at(count, np.ix_(rows, columns), 1.0)
    return total / count
