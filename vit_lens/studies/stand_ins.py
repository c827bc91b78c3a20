"""What stands in for what a site writes, in studies: every control of the registry, made of reference images."""

__all__ = ["NULLS", "StandIns"]

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.conditions import Condition
from vit_lens.controls import CONTROLS, Against, ControlBank, check_controls
from vit_lens.errors import StudyError
from vit_lens.lenses import Lens
from vit_lens.models import HookedViT
from vit_lens.towers import ViTActivationCache

NULLS = {"random": "equal-norm placebo", "other": "another image's output", "covariance": "covariance-matched placebo"}
"""What results call the controls of the registry."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StandIns:
    """Controls of the sites of a model, made of reference images, none of which is tested.

    Attributes:
        model: The model.
        reference: Other images, preprocessed.
        seed: Of which of them stands in for which image.
    """

    model: HookedViT
    reference: Float[Tensor, "reference channel height width"]
    seed: int = 0

    @property
    def kinds(self) -> list[str]:
        """The controls that can be made of so many reference images, the isotropic one first."""
        return [name for name, control in CONTROLS.items() if not control.lacks(len(self.reference))]

    @property
    def beside_random(self) -> list[str]:
        """The same without the isotropic one."""
        return [name for name in self.kinds if name != "random"]

    @cached_property
    def _banks(self) -> dict[str, ControlBank]:
        return {}

    def bank(self, rows: str = "readout") -> ControlBank:
        """Return the reference images, run once, at the rows that a lens reads."""
        if rows not in self._banks:
            self._banks[rows] = ControlBank.from_images(self.model, self.reference, rows=rows, seed=self.seed)
        return self._banks[rows]

    def check(self, kinds: Sequence[str], lenses: Iterable[Lens]) -> list[str]:
        """Return controls whose pictures are drawn beside the isotropic one's, by name.

        Raises:
            LensError: There is no such control, or a lens has it not.
            StudyError: There are too few reference images for one.
        """
        wanted = [kind.name for kind in check_controls(kinds) if kind.name != "random"]
        for name in wanted:
            if lacks := CONTROLS[name].lacks(len(self.reference)):
                raise StudyError(f"{lacks} (reference or anchor images, in a study)")
            if without := [lens for lens in lenses if not lens.has_controls]:
                raise StudyError(f"{without[0].describe().label} has no control but 'random': leave {name!r} out")
        return wanted

    def against(
        self, kind: str, lens: Lens, images: Sequence[int], *, generator: torch.Generator, turn: int = 0
    ) -> Against:
        """Return a control for the images of a cache.

        Args:
            kind: The name of the control.
            lens: That reads the cache.
            images: The numbers of its images, by which reference images are drawn: two that share one share them.
            generator: The source of random numbers.
            turn: The number of the draw.
        """
        if kind == "random":
            return Against(control=kind, generator=generator)
        others = self.bank(lens.rows).others([f"image {image}" for image in images], seed=self.seed, turn=turn)
        return Against(control=kind, generator=generator, others=others)

    def read(
        self, kind: str, lens: Lens, caches: Iterable[ViTActivationCache], sites: list[Site], *,
        generator: torch.Generator, turn: int = 0,
    ) -> Iterator[Condition]:  # fmt: skip
        """Give what a lens reads of a control, a batch of images at a time, numbered through."""
        start = 0
        for cache in caches:
            n = len(self.model.streams[0].last(cache))
            against = self.against(kind, lens, range(start, start + n), generator=generator, turn=turn)
            yield lens.read_against(cache, sites, against)
            start += n
