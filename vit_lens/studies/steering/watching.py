"""Pictures that are drawn while a direction is added, and what the exact judge reads in them; kept in files."""

__all__ = ["Push", "Seen", "Watcher"]

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from vit_lens.dictionaries import steer
from vit_lens.diffusion import HookedDiffusion
from vit_lens.errors import StudyError
from vit_lens.mini import inspection, still_life
from vit_lens.studies.kept_tensors import kept
from vit_lens.studies.steering.targets import Target

_FORMAT = "vit_lens.study.steering.1"
_AT_ONCE = 24


@dataclass(frozen=True, eq=False)
class Push:
    """What is added while pictures are drawn.

    Attributes:
        direction: Along which.
        strength: How much, in mean token norms.
        steps: At which steps.
        region: In which part of the picture, in cells; None for all of it.
    """

    direction: Float[Tensor, " d"]
    strength: float
    steps: tuple[int, ...]
    region: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, eq=False)
class Seen:
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

    def keeps(self, other: "Seen", target: Target) -> Float[np.ndarray, " picture"]:
        """Return the share of the first object's other two values that are those of other pictures."""
        at = [1 + k for k in range(3) if k != target.attribute]
        return (self.codes[:, at] == other.codes[:, at]).mean(1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Watcher:
    """Draws prompts while a direction is added at a hook point, and looks; what was looked at is never drawn again.

    Attributes:
        model: The model, of the embedded world of still lifes.
        site: The hook point.
        limit: The residual above which a picture is no scene.
        folder: Where answers are kept.
    """

    model: HookedDiffusion
    site: str
    limit: float
    folder: Path

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], push: Push | None = None
    ) -> UInt8[np.ndarray, "picture height width 3"]:
        """Return pictures of the world's own side, one for each prompt and seed.

        Raises:
            StudyError: The model's pictures are no multiple of the world's side.
        """
        hooks = []
        if push is not None:
            hooks = steer(
                self.model, self.site, push.direction, push.strength, at_steps=list(push.steps), region=push.region,
                branch="cond",
            )  # fmt: skip
        made = []
        for start in range(0, len(prompts), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            drawn = self.model.run_with_hooks(
                list(prompts[some]), seed=list(seeds[some]), fwd_hooks=hooks, output_type="np"
            )
            made.append(_reduced(np.rint(np.asarray(drawn) * 255)))
        return np.concatenate(made)

    def see(self, prompts: Sequence[str], seeds: Sequence[int], push: Push | None = None) -> Seen:
        """Draw and look, or read what was seen."""
        path = self.folder / f"{self._key(prompts, seeds, push)}.safetensors"
        found = kept(path, _FORMAT, "answers of the judge", partial(self._look, prompts, seeds, push))
        return Seen(found["codes"].numpy(), found["residuals"].numpy() <= self.limit, found["first"].numpy())

    def _look(self, prompts: Sequence[str], seeds: Sequence[int], push: Push | None) -> dict[str, Tensor]:
        pictures = self.draw(prompts, seeds, push)
        found = inspection.inspect(pictures)
        return {
            "codes": torch.from_numpy(still_life.codes(found.scenes)),
            "residuals": torch.from_numpy(found.residuals), "first": torch.from_numpy(pictures[0]),
        }  # fmt: skip

    def _key(self, prompts: Sequence[str], seeds: Sequence[int], push: Push | None) -> str:
        said = [self.model.fingerprint, self.model.run_settings(), self.site, list(prompts), list(seeds)]
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        if push is not None:
            digest.update(json.dumps([push.strength, push.steps, push.region]).encode())
            digest.update(push.direction.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()[:32]


def _reduced(pictures: Float[np.ndarray, "picture tall wide 3"]) -> UInt8[np.ndarray, "picture height width 3"]:
    """Return pictures with each square of pixels as its mean, so that they have the world's own side."""
    n, height, width, _ = pictures.shape
    times = height // still_life.SIDE
    if (height, width) != (times * still_life.SIDE,) * 2:
        raise StudyError(f"pictures of {height} x {width} pixels; the judge reads multiples of {still_life.SIDE}")
    squares = pictures.reshape(n, still_life.SIDE, times, still_life.SIDE, times, 3)
    return np.rint(squares.mean((2, 4))).astype(np.uint8)
