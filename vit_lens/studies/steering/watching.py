"""What a model gives while a direction is added, and what is read in it; kept in files, so that nothing runs twice."""

__all__ = ["Push", "Seen", "Watched", "Watcher"]

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from vit_lens.dictionaries import Dictionary
from vit_lens.studies.kept_tensors import kept
from vit_lens.studies.steering.targets import Target

_FORMAT = "vit_lens.study.steering.1"


@dataclass(frozen=True, eq=False)
class Push:
    """What is added while a model runs.

    Attributes:
        direction: Along which.
        strength: How much, in mean token norms.
        steps: At which steps; none of a model that has none.
        where: In which part: of a denoiser's picture ``(top, left, bottom, right)`` in cells, of an image encoder the
            patches of each input; None for all that the dictionary is of.
    """

    direction: Float[Tensor, " d"]
    strength: float
    steps: tuple[int, ...] = ()
    where: tuple[Any, ...] | None = None


@runtime_checkable
class Seen(Protocol):
    """What was read in what a model gave.

    Attributes:
        is_scene: Of each input, whether there is anything to read; always where that cannot be said.
        first: The first picture; None where none was drawn.
    """

    @property
    def is_scene(self) -> Bool[np.ndarray, " input"]: ...
    @property
    def first(self) -> UInt8[np.ndarray, "height width 3"] | None: ...
    def shows(self, target: Target) -> Bool[np.ndarray, " input"]:
        """Return whether the target is there."""
        ...

    def shown(self, target: Target) -> Float[np.ndarray, " input"]:
        """Return how much of the target is there, which directions are chosen by."""
        ...

    def keeps(self, other: Any, target: Target) -> Float[np.ndarray, " input"]:
        """Return the share of the other attributes that are as they are in what was read of other outputs."""
        ...


@runtime_checkable
class Watched(Protocol):
    """What runs on inputs while a direction is added, and reads what came out."""

    def identity(self, dictionary: Dictionary) -> list[Any]:
        """Return all that outputs follow from, but inputs, seeds and what is added, as plain values."""
        ...

    def run(
        self, dictionary: Dictionary, inputs: Sequence[Any], seeds: Sequence[int], push: Push | None
    ) -> Float[np.ndarray, "input *output"] | UInt8[np.ndarray, "input *output"]:
        """Return what the model gives for each input, steered where the dictionary is."""
        ...

    def look(self, outputs: np.ndarray) -> dict[str, Tensor]:
        """Read outputs, as tensors that are kept."""
        ...

    def seen(self, found: Mapping[str, Tensor]) -> Seen:
        """Return what was read, from what is kept of it."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Watcher:
    """Runs and looks; what was looked at never runs again.

    Attributes:
        watched: What runs and looks.
        dictionary: Says where is steered: its hook point, and the tokens that it is of.
        folder: Where answers are kept.
    """

    watched: Watched
    dictionary: Dictionary
    folder: Path

    def run(self, inputs: Sequence[Any], seeds: Sequence[int], push: Push | None = None) -> np.ndarray:
        """Return what the model gives for each input, with the noise of its seed where there is noise."""
        return self.watched.run(self.dictionary, inputs, seeds, push)

    def see(self, inputs: Sequence[Any], seeds: Sequence[int], push: Push | None = None) -> Seen:
        """Run and look, or read what was seen."""
        path = self.folder / f"{self._key(inputs, seeds, push)}.safetensors"
        made = kept(path, _FORMAT, "answers of the judge", lambda: self.watched.look(self.run(inputs, seeds, push)))
        return self.watched.seen(made)

    def _key(self, inputs: Sequence[Any], seeds: Sequence[int], push: Push | None) -> str:
        said = [*self.watched.identity(self.dictionary), list(inputs), list(seeds)]
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        if push is not None:
            digest.update(json.dumps([push.strength, push.steps, push.where]).encode())
            digest.update(push.direction.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()[:32]
