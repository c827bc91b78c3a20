"""What lenses say of pairs before decoding and in pictures, with the same of their controls."""

__all__ = ["STREAM", "Chosen", "Study", "Whole", "read_embeddings", "read_pictures"]

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vit_lens.cache import ViTActivationCache
from vit_lens.errors import StudyError
from vit_lens.names import Site
from vit_lens.studies.content.effects import Changes, caption_changes
from vit_lens.studies.content.pairs import AttributePairs
from vit_lens.studies.content.scores import Reading
from vit_lens.studies.reading import caches
from vit_lens.studies.setup import StudySetup
from vit_lens.texts import TextBank

STREAM = 1
"""Of the random numbers of this study, behind the seed of its setup."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Whole:
    """What whole images change, by attribute: the units of all shares.

    Attributes:
        attributes: Those that are kept.
        encoder: The change of the encoder's own contrast.
        judge: The change of the judge's; None without one.
        table: All attributes, with why some are left out.
    """

    attributes: list[str]
    encoder: Float[np.ndarray, " attribute"]
    judge: Float[np.ndarray, " attribute"] | None
    table: list[dict[str, Any]]

    def changes(
        self, found: Float[np.ndarray, "pair site"], pairs: AttributePairs, *, by_judge: bool = False
    ) -> Changes:
        """Sum changes by base and attribute, in units of the encoder's or the judge's full change."""
        full = self.judge if by_judge and self.judge is not None else self.encoder
        return Changes.of(found, pairs, self.attributes, full)


@dataclass(frozen=True, eq=False, kw_only=True)
class Chosen:
    """Sites by number: all are read before decoding, some are drawn, and some of these are the top ones."""

    top: list[int]
    drawn: list[int]
    why: dict[int, str]


@dataclass(frozen=True, eq=False, kw_only=True)
class Study:
    """What all readings share.

    Attributes:
        setup: Of the study.
        pairs: Of images.
        sites: That are read.
        effects: What the sites cause, by name: total and direct.
        chosen: Which of them are drawn.
        whole: What whole images change.
    """

    setup: StudySetup
    pairs: AttributePairs
    sites: list[Site]
    effects: Mapping[str, Float[np.ndarray, "pair site"]]
    chosen: Chosen
    whole: Whole


def read_embeddings(study: Study, texts: TextBank, *, n_placebo: int) -> list[Reading]:
    """Read every lens before decoding, by the encoder's own captions."""
    setup, pairs, whole = study.setup, study.pairs, study.whole
    causal = {name: whole.changes(found, pairs) for name, found in study.effects.items()}
    held = list(caches(setup.model, setup.pixels))
    readings = []
    for spec, lens in tqdm(setup.lenses.items(), desc="lens embeddings", disable=not setup.progress):
        embeds = _cat(lens.embed(cache, study.sites) for cache in held)
        placebos = (_placebo(setup, spec, held, study.sites, draw) for draw in range(n_placebo))
        readings.append(
            Reading(
                spec=spec, level="embedding", causal=causal, top=study.chosen.top,
                changes=whole.changes(caption_changes(texts, embeds, pairs), pairs),
                other=whole.changes(caption_changes(texts, embeds, pairs, shown=pairs.donors()), pairs),
                placebos=[whole.changes(caption_changes(texts, one, pairs), pairs) for one in placebos],
                placebo_sites=list(range(len(study.sites))),
            )
        )  # fmt: skip
    return readings


def read_pictures(study: Study, spec: str, judge_texts: TextBank, *, n: int) -> Reading:
    """Draw one lens for the first ``n`` bases and their partners, and read the pictures by the judge's captions."""
    setup, whole, chosen = study.setup, study.whole, study.chosen
    pairs, rows = study.pairs.first(n), study.pairs.pairs_of_first(n)
    held = list(caches(setup.model, setup.pixels[study.pairs.images_of_first(n)]))
    drawn, top = ([study.sites[i] for i in numbers] for numbers in (chosen.drawn, chosen.top))
    seen = _see(setup, pairs, _cat(setup.lenses[spec].embed(cache, drawn) for cache in held), spec)
    placebo = _see(setup, pairs, _placebo(setup, spec, held, top, 0), f"{spec}, placebo")
    found, other, control = (
        whole.changes(caption_changes(judge_texts, shown, pairs, shown=donors), pairs, by_judge=True)
        for shown, donors in ((seen, None), (seen, pairs.donors()), (placebo, None))
    )
    effects = study.effects.items()
    causal = {name: whole.changes(changes[np.ix_(rows, chosen.drawn)], pairs) for name, changes in effects}
    places = [chosen.drawn.index(site) for site in chosen.top]
    return Reading(
        spec=spec, level="decoded", changes=found, causal=causal, top=places, other=other, placebos=[control],
        placebo_sites=places,
    )  # fmt: skip


def _cat(embeds: Iterator[Tensor]) -> Float[Tensor, "image site d_embed"]:
    with torch.no_grad():
        return torch.cat([some.float().cpu() for some in embeds])


def _placebo(
    setup: StudySetup, spec: str, held: list[ViTActivationCache], sites: list[Site], draw: int
) -> Float[Tensor, "image site d_embed"]:
    """Return the lens of random directions of equal norm, another one for every image and site."""
    number = list(setup.lenses).index(spec) + 1
    seed = int(np.random.default_rng([setup.seed, STREAM, number, draw]).integers(2**62))
    generator = torch.Generator().manual_seed(seed)
    return _cat(setup.lenses[spec].placebo(cache, sites, generator=generator) for cache in held)


def _see(
    setup: StudySetup, pairs: AttributePairs, embeds: Float[Tensor, "image site d_embed"], label: str
) -> Float[Tensor, "image site d_judge"]:
    """Draw every row and let the judge look; a base, its partners and all their sites share their noise."""
    pictures, n_seeds = setup.drawing("content"), len(setup.noise_seeds)
    base_of = dict(zip(pairs.partner, pairs.base, strict=True))
    found: dict[int, Tensor] = {}
    for turn, noise_seed in enumerate(setup.noise_seeds):
        images = [i for i in range(len(embeds)) if base_of.get(i, i) % n_seeds == turn]
        if images:
            seen = pictures.see(
                embeds[images].flatten(0, 1), noise_seed=noise_seed, label=f"{label}, noise {noise_seed}"
            )
            if seen.judge is None:
                raise StudyError("pictures were seen without a judge; pass judge= (--judge)")
            found |= dict(zip(images, seen.judge.unflatten(0, (len(images), -1)), strict=True))
    return torch.stack([found[image] for image in range(len(embeds))])
