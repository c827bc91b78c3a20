"""What a kind of model is to the study: inputs that have a target or not, a run, what is read of it. One file each."""

__all__ = ["Kind"]

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vit_lens.dictionaries import Dictionary
from vit_lens.hooking import LoudHookedRootModule
from vit_lens.studies.steering.choosing import Pool
from vit_lens.studies.steering.scores import Plan
from vit_lens.studies.steering.targets import Target
from vit_lens.studies.steering.watching import Push, Seen, Watched, Watcher


class Kind(ABC):
    """A kind of model that is steered; it is a :class:`Watched` of its own.

    Attributes:
        name: What a result calls it.
        plan: What is measured of it.
        targets: What can be steered to.
    """

    name: ClassVar[str]
    plan: ClassVar[Plan]
    targets: ClassVar[tuple[Target, ...]]

    @property
    @abstractmethod
    def model(self) -> LoudHookedRootModule:
        """What is steered."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what a result must carry of it, ``encoder`` and ``fingerprint`` at least."""

    @abstractmethod
    def notes(self, dictionary: Dictionary) -> tuple[str, ...]:
        """Return what a result must say of this kind: what is steered, and which measures it cannot have."""

    def check(self, site: str) -> None:
        """Refuse a hook point that cannot be studied.

        Raises:
            StudyError: It is such a one.
        """
        return

    def options(self) -> dict[str, Any]:
        """Return options of this kind alone, which results that are pooled must share."""
        return {}

    # ---- inputs

    @abstractmethod
    def inputs(
        self, target: Target, n: int, generator: np.random.Generator, *, studied: bool
    ) -> Mapping[str, Sequence[Any]]:
        """Return inputs by what they say of a target, ``n`` of each, those of the plan's ``relations`` at least.

        Args:
            target: The target.
            n: How many.
            generator: Draws them.
            studied: Whether they are studied; else directions are chosen on them.
        """

    @abstractmethod
    def pool(self, dictionary: Dictionary, seeds: Sequence[int]) -> Pool:
        """Return tokens of inputs that are not studied, for lift and for the difference of means."""

    def windows(self, generator: np.random.Generator) -> dict[str, tuple[int, ...]]:
        """Return the steps that are steered by window, ``early`` first; none of a model that has no steps."""
        return {"early": ()}

    # ---- what comes out

    @abstractmethod
    def identity(self, dictionary: Dictionary) -> list[Any]:
        """See :class:`Watched`."""

    @abstractmethod
    def run(self, dictionary: Dictionary, inputs: Sequence[Any], seeds: Sequence[int], push: Push | None) -> np.ndarray:
        """See :class:`Watched`."""

    @abstractmethod
    def look(self, outputs: np.ndarray) -> dict[str, Tensor]:
        """See :class:`Watched`."""

    @abstractmethod
    def seen(self, found: Mapping[str, Tensor]) -> Seen:
        """See :class:`Watched`."""

    @property
    def pictures(self) -> Watched | None:
        """What draws and reads pictures beside that; None where outputs are pictures, or nothing draws."""
        return None

    def sides(
        self, watcher: Watcher, target: Target, push: Push, inputs: Mapping[str, Sequence[Any]], seeds: Sequence[int],
        pool: Pool, generator: np.random.Generator,
    ) -> dict[str, Float[np.ndarray, " input"]]:  # fmt: skip
        """Return how much of the target is seen ``inside`` and ``outside`` of a part; nothing where there are no parts.

        Args:
            watcher: What runs and looks.
            target: The target.
            push: What is added, everywhere.
            inputs: The inputs that are studied.
            seeds: Their noises.
            pool: The pool.
            generator: Draws what is drawn at random; the same for every direction.
        """
        return {}
