"""The orders on trial: heads ranked by lenses, by their pictures, by norms and by effects, placebos beside them."""

__all__ = ["Ranking", "by_effects", "by_embeddings", "by_norms", "by_pictures"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from vit_lens.addresses import Site
from vit_lens.lenses import Lens
from vit_lens.studies.overlay.ranking import Scenes, from_embeddings, from_pictures, norms
from vit_lens.studies.overlay.removal import Removal
from vit_lens.studies.study_setup import StudySetup

_PLACEBOS, _DECODED_PLACEBOS = 31, 32  # random streams

Scores = Float[np.ndarray, "overlay site"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranking:
    """Scores of heads by one reading, the largest to go first, and those of its placebo.

    Attributes:
        reading: Lens or baseline.
        level: ``embedding`` or ``decoded``.
        circular: Whether pictures were read by the encoder that they came from.
        scores: Of heads, for each overlay.
        placebos: The same with a random direction of equal norm in each site's place, a draw each.
    """

    reading: str
    level: str = "embedding"
    circular: bool = False
    scores: Scores
    placebos: Sequence[Scores] = ()

    @property
    def name(self) -> str:
        """The reading, its level and its reader."""
        return f"{self.reading}, {self.level}{', own encoder' * self.circular}"


def by_embeddings(setup: StudySetup, scenes: Scenes, sites: list[Site], draws: int) -> list[Ranking]:
    """Rank heads by every lens, before decoding."""
    found = []
    for place, (spec, lens) in enumerate(setup.lenses.items()):
        placebos = [
            from_embeddings(
                setup.model, scenes, lens, sites, how=_placebo(setup, lens, sites, (_PLACEBOS, place, draw))
            )
            for draw in range(draws)
        ]
        scores = from_embeddings(setup.model, scenes, lens, sites)
        found.append(Ranking(reading=spec, scores=scores, placebos=placebos))
    return found


def by_pictures(
    setup: StudySetup, scenes: Scenes, sites: list[Site], decoded: Sequence[str], placebos: Sequence[str]
) -> list[Ranking]:
    """Rank heads by decoded pictures alone; one draw of the placebo for the lenses in ``placebos``."""
    found = []
    for spec in decoded:
        lens = setup.lenses[spec]
        real = from_pictures(setup, scenes, lens, sites, label=spec)
        drawn = {}
        if spec in placebos:
            how = _placebo(setup, lens, sites, (_DECODED_PLACEBOS, decoded.index(spec)))
            drawn = from_pictures(setup, scenes, lens, sites, label=f"{spec}, placebo", how=how)
        found += [
            Ranking(
                reading=spec, level="decoded", circular=reader == "own", scores=scores,
                placebos=[drawn[reader]] if drawn else [],
            )
            for reader, scores in real.items()
        ]  # fmt: skip
    return found


def by_norms(setup: StudySetup, scenes: Scenes, sites: list[Site]) -> list[Ranking]:
    """Rank heads by what needs no lens and no ablation."""
    return [Ranking(reading=name, scores=scores) for name, scores in norms(setup, scenes, sites).items()]


def by_effects(removal: Removal) -> list[Ranking]:
    """Rank heads by what happens to T when each is taken away by itself."""
    return [
        Ranking(reading="direct effect", scores=removal.directly()),
        Ranking(reading="total effect (static)", scores=removal.alone()),
    ]


def _placebo(setup: StudySetup, lens: Lens, sites: list[Site], stream: Sequence[int]) -> Callable[[Any], torch.Tensor]:
    generator = setup.generator(*stream)
    return lambda cache: lens.placebo(cache, sites, generator=generator)
