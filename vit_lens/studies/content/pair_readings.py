"""What lenses say of pairs before decoding and in pictures, with the same of their controls."""

__all__ = ["STREAM", "Chosen", "Study", "Whole", "read_embeddings", "read_pictures"]

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vit_lens.addresses import Site
from vit_lens.conditions import Condition
from vit_lens.errors import StudyError
from vit_lens.studies.content.agreement import Reading
from vit_lens.studies.content.effects import Changes, caption_changes
from vit_lens.studies.content.pairs import AttributePairs
from vit_lens.studies.similarities import caches
from vit_lens.studies.study_setup import StudySetup
from vit_lens.texts import TextBank
from vit_lens.towers import ViTActivationCache

STREAM = 1
"""Of the random numbers of this study, behind the seed of its setup."""
_STAND_INS = 41


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
    held = list(caches(setup.model, setup.pixels, lenses=setup.lenses.values()))
    readings = []
    for spec, lens in tqdm(setup.lenses.items(), desc="lens embeddings", disable=not setup.progress):
        embeds = _vectors(_cat(lens.read(cache, study.sites) for cache in held), texts)
        placebos = (_vectors(_placebo(setup, spec, held, study.sites, draw), texts) for draw in range(n_placebo))
        readings.append(
            Reading(
                spec=spec, level="embedding", causal=causal, top=study.chosen.top,
                changes=whole.changes(caption_changes(texts, embeds, pairs), pairs),
                other=whole.changes(caption_changes(texts, embeds, pairs, shown=pairs.donors()), pairs),
                placebos=[whole.changes(caption_changes(texts, one, pairs), pairs) for one in placebos],
                placebo_sites=list(range(len(study.sites))),
                stand_ins={
                    kind: [
                        whole.changes(caption_changes(texts, _vectors(one, texts), pairs), pairs)
                        for one in (_stand_in(setup, spec, kind, held, study.sites, draw) for draw in range(n_placebo))
                    ]
                    for kind in _others(setup, spec)
                },
            )
        )  # fmt: skip
    return readings


def read_pictures(
    study: Study, spec: str, judge_texts: TextBank, *, n: int, kinds: Sequence[str] = ("random",)
) -> Reading:
    """Draw one lens for the first ``n`` bases and their partners, and read the pictures by the judge's captions.

    Args:
        study: What all readings share.
        spec: The lens.
        judge_texts: The judge's captions.
        n: Bases.
        kinds: The controls of which the top sites are drawn, the isotropic one always.
    """
    setup, whole, chosen = study.setup, study.whole, study.chosen
    pairs, rows = study.pairs.first(n), study.pairs.pairs_of_first(n)
    images = setup.pixels[study.pairs.images_of_first(n)]
    held = list(caches(setup.model, images, lenses=[setup.lenses[spec]]))
    drawn, top = ([study.sites[i] for i in numbers] for numbers in (chosen.drawn, chosen.top))
    seen = _see(setup, pairs, _cat(setup.lenses[spec].read(cache, drawn) for cache in held), spec)
    placebo = _see(setup, pairs, _placebo(setup, spec, held, top, 0), f"{spec}, placebo")
    found, other, control = (
        whole.changes(caption_changes(judge_texts, shown, pairs, shown=donors), pairs, by_judge=True)
        for shown, donors in ((seen, None), (seen, pairs.donors()), (placebo, None))
    )
    more = {}
    for kind in (one for one in kinds if one != "random"):
        asked = _stand_in(setup, spec, kind, held, top, 0)
        looked_at = _see(setup, pairs, asked, f"{spec}, {kind}")
        more[kind] = [whole.changes(caption_changes(judge_texts, looked_at, pairs), pairs, by_judge=True)]
    effects = study.effects.items()
    causal = {name: whole.changes(changes[np.ix_(rows, chosen.drawn)], pairs) for name, changes in effects}
    places = [chosen.drawn.index(site) for site in chosen.top]
    return Reading(
        spec=spec, level="decoded", changes=found, causal=causal, top=places, other=other, placebos=[control],
        placebo_sites=places, stand_ins=more,
    )  # fmt: skip


def _cat(read: Iterator[Condition]) -> Condition:
    with torch.no_grad():
        return Condition.cat([some.kept() for some in read])


def _vectors(read: Condition, texts: TextBank) -> Float[Tensor, "image site d_embed"]:
    """Return what captions are compared with: pooled embeddings, or the means of tokens in the space of captions."""
    vectors = read.vector
    if vectors.shape[-1] != texts.embeds.shape[-1]:
        raise StudyError(
            f"a lens reads {read.words()}, and captions are {texts.embeds.shape[-1]} wide: study content reads lenses "
            "by captions before decoding, and needs them in one space"
        )
    return vectors


def _placebo(setup: StudySetup, spec: str, held: list[ViTActivationCache], sites: list[Site], draw: int) -> Condition:
    """Return the lens of random directions of equal norm, another one for every image and site."""
    number = list(setup.lenses).index(spec) + 1
    generator = setup.generator(STREAM, number, draw)
    return _cat(setup.lenses[spec].read_control(cache, sites, generator=generator) for cache in held)


def _others(setup: StudySetup, spec: str) -> list[str]:
    """Return the controls beside the isotropic one that a lens has."""
    return setup.stand_ins.beside_random if setup.lenses[spec].has_controls else []


def _stand_in(
    setup: StudySetup, spec: str, kind: str, held: list[ViTActivationCache], sites: list[Site], draw: int
) -> Condition:
    """Return the lens of another control; a base and its partner stand beside other images of their own."""
    number = list(setup.lenses).index(spec) + 1
    generator = setup.generator(_STAND_INS, number, draw)
    return _cat(setup.stand_ins.read(kind, setup.lenses[spec], held, sites, generator=generator, turn=draw))


def _see(setup: StudySetup, pairs: AttributePairs, asked: Condition, label: str) -> Float[Tensor, "image site d_judge"]:
    """Draw every row and let the judge look; a base, its partners and all their sites share their noise."""
    base_of = dict(zip(pairs.partner, pairs.base, strict=True))
    noise = setup.noise_of((base_of.get(image, image) for image in range(len(asked))), asked.rows[1])
    seen = setup.drawing("content").see_each(asked.flatten_rows(), noise, label=label)
    return seen.by("judge").unflatten(0, asked.rows)
