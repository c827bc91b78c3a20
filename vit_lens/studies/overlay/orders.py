"""The orders on trial: heads ranked by lenses, by their pictures, by norms and by effects, placebos beside them."""

__all__ = ["Ranking", "by_effects", "by_embeddings", "by_norms", "by_pictures"]

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from vit_lens.addresses import Site
from vit_lens.lenses import Lens
from vit_lens.studies.overlay.ranking import Scenes, from_embeddings, from_pictures, norms
from vit_lens.studies.overlay.removal import Removal
from vit_lens.studies.study_setup import StudySetup

_PLACEBOS, _DECODED_PLACEBOS, _STAND_INS = 31, 32, 42  # random streams
_STAND_IN_DRAWS = 5  # of each further control: every order is run with its heads taken away

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
        stand_ins: The same with what other controls put there, by their name.
    """

    reading: str
    level: str = "embedding"
    circular: bool = False
    scores: Scores
    placebos: Sequence[Scores] = ()
    stand_ins: Mapping[str, Sequence[Scores]] = field(default_factory=dict)

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
        others = setup.stand_ins.beside_random if lens.has_controls and draws else []
        stand_ins = {
            kind: [
                from_embeddings(setup.model, scenes, lens, sites, how=_stand_in(setup, lens, sites, kind, place, draw))
                for draw in range(min(draws, _STAND_IN_DRAWS))
            ]
            for kind in others
        }
        found.append(Ranking(reading=spec, scores=scores, placebos=placebos, stand_ins=stand_ins))
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
            stream = _DECODED_PLACEBOS, decoded.index(spec)
            drawn = from_pictures(
                setup, scenes, lens, sites, label=f"{spec}, placebo",
                how=lambda one, stream=stream: _placebo(setup, one, sites, stream),
            )  # fmt: skip
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


def _stand_in(
    setup: StudySetup, lens: Lens, sites: list[Site], kind: str, place: int, draw: int
) -> Callable[[Any], torch.Tensor]:
    """Return what reads another control; every scene stands beside a reference image of its own."""
    generator, count = setup.generator(_STAND_INS, place, draw), itertools.count()

    def read(cache: Any) -> torch.Tensor:
        images = list(itertools.islice(count, len(lens.embed(cache, sites[:1]))))
        against = setup.stand_ins.against(kind, lens, images, generator=generator, turn=draw)
        return lens.pooled_against(cache, sites, against)

    return read


def _placebo(setup: StudySetup, lens: Lens, sites: list[Site], stream: Sequence[int]) -> Callable[[Any], torch.Tensor]:
    generator = setup.generator(*stream)
    return lambda cache: lens.placebo(cache, sites, generator=generator)
