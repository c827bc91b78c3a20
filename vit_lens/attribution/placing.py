"""Where the patches that a tower sees lie in the picture that it was given."""

__all__ = ["Placement"]

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from vit_lens.addresses import as_index
from vit_lens.attribution.maps import PatchMap
from vit_lens.errors import PreprocessError
from vit_lens.images import PreprocessSpec, load_image, margins, resized_size


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The map from the tower's pixels to those of one original picture: ``original = offset + step * seen``.

    Coordinates run along edges: 0 is the upper (left) edge of the first pixel, ``height`` (``width``) the lower
    (right) edge of the last. What lies outside the original is padding.

    Attributes:
        size: The (height, width) of the original in pixels, after its EXIF rotation.
        seen: The (height, width) in pixels that the tower sees.
        offset: Where the tower's upper left corner lies, in the original's pixels, as (vertical, horizontal).
        step: The original's pixels per pixel of the tower, as (vertical, horizontal).

    >>> place = vl.attribution.Placement.of_size((128, 128), model.preprocess_spec)
    >>> place.step, place.visible
    ((2.0, 2.0), (0.0, 0.0, 128.0, 128.0))
    >>> place.boxes(vl.attribution.attention_map(cache, layer=3, head=4))[0, 1].tolist()
    [0.0, 32.0, 32.0, 64.0]
    """

    size: tuple[int, int]
    seen: tuple[int, int]
    offset: tuple[float, float]
    step: tuple[float, float]

    @classmethod
    def of(cls, image: Any, spec: PreprocessSpec | None, *, layout: Any = None) -> "Placement":
        """Return where a picture's pixels go.

        Args:
            image: A path, a Pillow image or an array, as for :meth:`vit_lens.HookedViT.preprocess`.
            spec: The tower's preprocessing (``model.preprocess_spec``).
            layout: The order of an array's axes; None where the array itself shows it, or for other images.

        Raises:
            ImageError: The picture cannot be read.
            PreprocessError: There is no ``spec``, or the picture is too narrow for it.
        """
        if spec is None:
            raise PreprocessError("where patches lie follows from the tower's preprocessing; set model.preprocess_spec")
        picture = load_image(image, layout=layout)
        return cls.of_size((picture.height, picture.width), spec)

    @classmethod
    def of_size(cls, size: tuple[int, int], spec: PreprocessSpec) -> "Placement":
        """Return where the pixels of a picture of ``size`` (height, width) go.

        Args:
            size: The (height, width) of the picture in pixels.
            spec: The tower's preprocessing (``model.preprocess_spec``).

        Raises:
            PreprocessError: The size is none, or the picture is too narrow to be resized.
        """
        if not isinstance(size, (tuple, list)) or len(size) != 2 or any((as_index(side) or 0) < 1 for side in size):
            raise PreprocessError(f"size={size!r}; expected (height, width) in whole pixels, each at least 1")
        resized = resized_size(size, spec)
        step = size[0] / resized[0], size[1] / resized[1]
        top, left = margins(resized, spec)
        return cls(size=size, seen=spec.size, offset=(top * step[0], left * step[1]), step=step)

    def boxes(self, patch_map: PatchMap) -> Float[np.ndarray, "grid_row grid_column 4"]:
        """Return each patch's box in the original as (top, left, bottom, right); negative and larger is padding.

        Raises:
            PreprocessError: The map's grid is not that of a tower with this preprocessing.
        """
        rows, columns = self.edges(patch_map)
        ends = (rows[:-1, None], columns[None, :-1], rows[1:, None], columns[None, 1:])
        return np.stack(np.broadcast_arrays(*ends), -1)

    def edges(self, patch_map: PatchMap) -> tuple[Float[np.ndarray, " row_edge"], Float[np.ndarray, " column_edge"]]:
        """Return the edges between patches, in the original, downwards and to the right.

        Raises:
            PreprocessError: The map's grid is not that of a tower with this preprocessing.
        """
        grid, patch = patch_map.values.shape[1:], patch_map.patch_size
        if any(side // width != n for side, width, n in zip(self.seen, patch, grid, strict=True)):
            raise PreprocessError(
                f"{tuple(grid)} patches of {patch} pixels do not fill {self.seen}: another tower's preprocessing"
            )
        down, right = (self.offset[i] + self.step[i] * patch[i] * np.arange(grid[i] + 1) for i in (0, 1))
        return down, right

    @property
    def visible(self) -> tuple[float, float, float, float]:
        """The part of the original that the tower sees, as (top, left, bottom, right)."""
        far = [self.offset[i] + self.step[i] * self.seen[i] for i in (0, 1)]
        top, left = (max(0.0, offset) for offset in self.offset)
        bottom, right = (min(float(side), end) for side, end in zip(self.size, far, strict=True))
        return top, left, bottom, right
