"""The images of a study: those it tests, and two disjoint sets whose means it starts from."""

__all__ = ["StudyImages", "content_of"]

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_lens.errors import StudyError
from vit_lens.images import load_image, source_name

_MEANS_AT_MOST = 512
_MEANS_AT_LEAST = 8


@dataclass(frozen=True, eq=False)
class StudyImages:
    """Three sets of images of which no two share one, so that no mean knows what it is held against.

    Attributes:
        test: The images that are studied.
        anchor: The images whose means are the anchor of mean-anchored lenses, and what scores are centred on.
        ablation: The images whose means replace what is ablated.

    Raises:
        StudyError: A set is empty, or two sets share an image.
        ImageError: An image cannot be read.

    >>> pictures = [np.full((8, 8, 3), shade, np.uint8) for shade in range(20)]
    >>> split = vl.studies.StudyImages.split(pictures, 4)
    >>> len(split.test), len(split.anchor), len(split.ablation)
    (4, 8, 8)
    >>> vl.studies.StudyImages(test=pictures[:2], anchor=pictures[1:3], ablation=pictures[3:])
    Traceback (most recent call last):
    vit_lens.errors.StudyError: anchor image 0 (...) is the same picture as test image 1 (...); ...
    """

    test: Sequence[Any]
    anchor: Sequence[Any]
    ablation: Sequence[Any]

    def __post_init__(self) -> None:
        sets = {"test": self.test, "anchor": self.anchor, "ablation": self.ablation}
        for name, images in sets.items():
            if not len(images):
                raise StudyError(f"a study needs {name} images, and there are none")
        owner: dict[str, tuple[str, str]] = {}
        for name, images in sets.items():
            for number, image in enumerate(images):
                said = f"{name} image {number} ({source_name(image)})"
                first = owner.setdefault(content_of(image), (name, said))
                if first[0] != name:
                    raise StudyError(
                        f"{said} is the same picture as {first[1]}; test, anchor and ablation images must be disjoint, "
                        "or a mean would know what it is held against"
                    )

    @classmethod
    def split(cls, images: Sequence[Any], n: int, *, seed: int = 0) -> "StudyImages":
        """Draw test images at random; the others are shared between the two sets of means, at most 512 each.

        Copies of one picture count once.

        Args:
            images: Paths, Pillow images or uint8 arrays [height width 3].
            n: How many images are tested.
            seed: The seed of the draw.

        Raises:
            StudyError: Too few are left for the means, which need 8 each.
        """
        distinct = list({content_of(image): image for image in images}.values())
        order = [distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))]
        left = (len(order) - n) // 2
        if n < 1 or left < _MEANS_AT_LEAST:
            raise StudyError(
                f"{len(distinct)} different images cannot give {n} to test and two more sets of at least "
                f"{_MEANS_AT_LEAST} for means; give {n + 2 * _MEANS_AT_LEAST} or more, better a few hundred, or a "
                "smaller --n"
            )
        size = min(left, _MEANS_AT_MOST)
        return cls(order[:n], order[n : n + size], order[n + size : n + 2 * size])


def content_of(image: Any) -> str:
    """Return digits that identify a picture by its pixels."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        array = np.ascontiguousarray(image)
    else:
        array = np.asarray(load_image(image).convert("RGB"))
    return hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()[:24]
