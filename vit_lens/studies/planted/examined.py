"""Planted encoders, examined: is their truth true, and what does every lens say?"""

__all__ = ["Examined", "examine", "read_bare"]

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.lenses import Lens
from vit_lens.models import HookedViT
from vit_lens.reference import ReferenceMeans
from vit_lens.studies.planted.labelled import LabelledAttribute
from vit_lens.studies.planted.recovery import LensGaps, Patched, contrast, gap, lens_gaps, patched, write_norms
from vit_lens.studies.planted.soil import Plant, Soil
from vit_lens.studies.stand_ins import StandIns
from vit_lens.studies.study_setup import StudySetup
from vit_lens.texts import TextBank

_SPEAKS = 0.5
_ALONE = 0.1
_Pixels = Float[Tensor, "image channel height width"]
_Embeds = Float[Tensor, "image d_embed"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Examined:
    """A planted encoder with what was found in it.

    Attributes:
        plant: The encoder.
        lenses: Bound to its own means.
        gaps: What each lens shows.
        before: The same before planting, where nothing tells the attribute.
        norms: Of every head, without a lens.
        patched: The truth, head by head.
        kept: Mean cosine of its embeddings with those of the encoder that it was made of.
        contrasts: Gap of the captions' contrast between the classes: of that encoder, and of the planted one.
    """

    plant: Plant
    lenses: dict[str, Lens]
    gaps: dict[str, LensGaps]
    before: dict[str, LensGaps]
    norms: dict[str, Float[np.ndarray, " head"]]
    patched: Patched
    kept: float
    contrasts: tuple[float, float]

    @property
    def at(self) -> int:
        """Which of the heads is the planted one."""
        return Site.heads(self.plant.model).index(self.plant.site)

    @property
    def largest_other(self) -> float:
        """The largest direct effect of another head, as a share of the whole contrast."""
        return float(np.abs(np.delete(self.patched.direct, self.at)).max())

    @property
    def is_true(self) -> bool:
        """Whether patching the head alone carries half of the contrast, and no other head more than a tenth."""
        return bool(self.patched.direct[self.at] >= _SPEAKS and self.largest_other <= _ALONE)


def read_bare(setup: StudySetup, texts: TextBank, soil: Soil) -> dict[str, LensGaps]:
    """Read every head with every lens where an attribute was removed and nothing planted yet."""
    return _read(setup, texts, soil.bare, soil.attribute, n_draws=1, seed=(setup.seed,))[1]


@torch.no_grad()
def examine(
    setup: StudySetup,
    texts: TextBank,
    plant: Plant,
    *,
    before: dict[str, LensGaps],
    n_draws: int,
    seed: tuple[int, ...],
) -> Examined:
    """Patch every head, and read every head with every lens and its controls.

    Args:
        setup: Of the encoder that was planted.
        texts: Its captions.
        plant: The planted encoder.
        before: Of :func:`read_bare`.
        n_draws: Of the controls.
        seed: Of the draws.
    """
    pixels, host, label = _known(setup, plant.attribute)
    captions = plant.attribute.captions
    (lenses, means), gaps = _read(setup, texts, plant.model, plant.attribute, n_draws=n_draws, seed=seed)
    embeds = plant.model(pixels)
    return Examined(
        plant=plant, lenses=lenses, gaps=gaps, before=before, norms=write_norms(plant.model, pixels, means),
        patched=patched(plant, texts, pixels, label), kept=float(torch.cosine_similarity(embeds, host).mean()),
        contrasts=(_told(texts, host, captions, label), _told(texts, embeds, captions, label)),
    )  # fmt: skip


def _read(
    setup: StudySetup,
    texts: TextBank,
    model: HookedViT,
    attribute: LabelledAttribute,
    *,
    n_draws: int,
    seed: tuple[int, ...],
) -> tuple[tuple[dict[str, Lens], ReferenceMeans], dict[str, LensGaps]]:
    means = ReferenceMeans.from_images(model, setup.anchor_pixels, batch_size=64)
    lenses = setup.lenses_of(model, means)
    pixels, _, label = _known(setup, attribute)
    others = StandIns(model=model, reference=setup.anchor_pixels, seed=setup.seed)
    gaps = lens_gaps(
        model, pixels, lenses, texts, attribute.captions, label, n_draws=n_draws, seed=seed, stand_ins=others
    )  # fmt: skip
    return (lenses, means), gaps


def _known(setup: StudySetup, attribute: LabelledAttribute) -> tuple[_Pixels, _Embeds, Int[np.ndarray, " image"]]:
    """Return the test images of which the attribute is known, their embeddings and their classes."""
    known = attribute.test >= 0
    rows = torch.from_numpy(np.flatnonzero(known)).to(setup.pixels.device)
    return setup.pixels[rows], setup.clean[rows.to(setup.clean.device)].to(setup.pixels.device), attribute.test[known]


def _told(texts: TextBank, embeds: _Embeds, captions: tuple[str, str], label: Int[np.ndarray, " image"]) -> float:
    return float(gap(contrast(texts, embeds, captions), label))
