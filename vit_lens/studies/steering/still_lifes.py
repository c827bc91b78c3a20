"""Pictures of still lifes, and what the exact judge reads in them: of denoisers and of text encoders."""

__all__ = ["AT_ONCE", "SeenPictures", "drawn", "look", "seen"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from vit_lens.diffusion import HookedDiffusion
from vit_lens.errors import StudyError
from vit_lens.mini import inspection, still_life
from vit_lens.studies.steering.targets import Target

AT_ONCE = 24
"""Pictures that are drawn together."""


@dataclass(frozen=True, eq=False)
class SeenPictures:
    """What the exact judge reads in pictures.

    Attributes:
        codes: Layout, then colour, texture and shape at both places, as :func:`still_life.codes` has them.
        is_scene: Whether there is a scene at all: whether the residual is within the limit.
        first: The first picture.
    """

    codes: Int[np.ndarray, "picture 7"]
    is_scene: Bool[np.ndarray, " picture"]
    first: UInt8[np.ndarray, "height width 3"]

    def shows(self, target: Target, place: int | None = None) -> Bool[np.ndarray, " picture"]:
        """Return whether pictures are scenes in which an object, or that at a place, has the target's value."""
        found = self.codes[:, [1 + target.attribute, 4 + target.attribute]] == target.number
        return self.is_scene & (found.any(1) if place is None else found[:, place])

    def shown(self, target: Target) -> Float[np.ndarray, " picture"]:
        """Return 1 where pictures show the target, else 0."""
        return self.shows(target).astype(float)

    def keeps(self, other: "SeenPictures", target: Target) -> Float[np.ndarray, " picture"]:
        """Return the share of the first object's other two values that are those of other pictures."""
        at = [1 + k for k in range(3) if k != target.attribute]
        return (self.codes[:, at] == other.codes[:, at]).mean(1)


def look(pictures: UInt8[np.ndarray, "picture height width 3"]) -> dict[str, Tensor]:
    """Return what the exact judge reads, as tensors that are kept."""
    found = inspection.inspect(pictures)
    return {
        "codes": torch.from_numpy(still_life.codes(found.scenes)),
        "residuals": torch.from_numpy(found.residuals), "first": torch.from_numpy(pictures[0]),
    }  # fmt: skip


def seen(found: Mapping[str, Tensor], limit: float) -> SeenPictures:
    """Return what was read, of tensors that were kept; a residual above the limit is no scene."""
    return SeenPictures(found["codes"].numpy(), found["residuals"].numpy() <= limit, found["first"].numpy())


def drawn(
    model: HookedDiffusion, prompts: Sequence[str] | None, seeds: Sequence[int], **options: Any
) -> UInt8[np.ndarray, "picture height width 3"]:
    """Draw pictures of the world's own side, with the hooks that are on; each square of pixels is its mean.

    Args:
        model: The pipeline.
        prompts: The prompts; None where the options have ``prompt_embeds``.
        seeds: Of the noise of each.
        **options: What else the pipeline is called with.

    Raises:
        StudyError: The pictures are no multiple of the world's side.
    """
    given = np.asarray(model(None if prompts is None else list(prompts), seed=list(seeds), output_type="np", **options))
    return inspection.reduced(np.rint(given * 255), StudyError)
