"""What lenses say of pairs before decoding and in pictures, with the same of their controls."""

__all__ = [
    "STREAM", "Chosen", "Drawn", "Study", "Whole", "draw_pictures", "read_embeddings", "read_pictures", "reading_of",
]  # fmt: skip

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from vit_lens.lenses import Lens
from vit_lens.studies.content.agreement import Reading
from vit_lens.studies.content.effects import Changes, caption_changes
from vit_lens.studies.content.pairs import AttributePairs
from vit_lens.studies.similarities import held_caches
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
    """Sites by number: all are read before decoding, some are drawn, and some of these are the top ones.

    ``early`` are MLPs of the first half of the layers, drawn or not.
    """

    top: list[int]
    early: list[int]
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
    held = held_caches(setup.model, setup.pixels, setup.lenses.values())
    readings = []
    for spec, lens in tqdm(setup.lenses.items(), desc="lens embeddings", disable=not setup.progress):
        embeds = _vectors(_cat(lens.read(cache, study.sites) for cache in held), texts)
        placebos = (_vectors(_placebo(setup, spec, lens, held, study.sites, draw), texts) for draw in range(n_placebo))
        readings.append(
            Reading(
                spec=spec, level="embedding", causal=causal, top=study.chosen.top, early=study.chosen.early,
                changes=whole.changes(caption_changes(texts, embeds, pairs), pairs),
                other=whole.changes(caption_changes(texts, embeds, pairs, shown=pairs.donors()), pairs),
                placebos=[whole.changes(caption_changes(texts, one, pairs), pairs) for one in placebos],
                stand_ins={
                    kind: [
                        whole.changes(caption_changes(texts, _vectors(one, texts), pairs), pairs)
                        for one in (
                            _stand_in(setup, spec, lens, kind, held, study.sites, draw) for draw in range(n_placebo)
                        )
                    ]
                    for kind in _others(setup, spec)
                },
            )
        )  # fmt: skip
    return readings


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawn:
    """What was asked for of one lens, and what the judge saw in the pictures; each of a list, from one anchor.

    Attributes:
        asked: Conditions [image site].
        seen: The judge's embeddings of their pictures.
    """

    asked: list[Condition]
    seen: list[Float[Tensor, "image site d_judge"]]


def draw_pictures(study: Study, spec: str, *, n: int, kinds: Sequence[str] = ("random",)) -> dict[str, Drawn]:
    """Draw one lens, and its controls, for the first ``n`` bases and their partners; the judge looks.

    Of a lens that starts from several anchors, each has pictures of its own.

    Args:
        study: What all readings share.
        spec: The lens.
        n: Bases.
        kinds: The controls of which all these sites are drawn, the isotropic one always.

    Returns:
        The lens under "own", and every control under its name.
    """
    setup, pairs = study.setup, study.pairs.first(n)
    images = setup.pixels[study.pairs.images_of_first(n)]
    lens, drawn = setup.lenses[spec], [study.sites[i] for i in study.chosen.drawn]
    held = held_caches(setup.model, images, [lens])

    def look(read: Callable[[Lens], Condition], label: str) -> Drawn:
        asked = [read(one) for one in lens.each()]
        return Drawn(asked=asked, seen=[_see(setup, pairs, one, label) for one in asked])

    found = {
        "own": look(lambda one: _cat(one.read(cache, drawn) for cache in held), spec),
        "random": look(lambda one: _placebo(setup, spec, one, held, drawn, 0), f"{spec}, placebo"),
    }
    for kind in kinds:
        if kind != "random":
            found[kind] = look(
                lambda one, kind=kind: _stand_in(setup, spec, one, kind, held, drawn, 0), f"{spec}, {kind}"
            )
    return found


def read_pictures(study: Study, spec: str, *, n: int, kinds: Sequence[str] = ("random",)) -> Reading:
    """Draw one lens as :func:`draw_pictures` does, and read the pictures by the judge's captions.

    Args:
        study: What all readings share.
        spec: The lens.
        n: Bases.
        kinds: The controls that are drawn beside the isotropic one.
    """
    return reading_of(study, spec, draw_pictures(study, spec, n=n, kinds=kinds), n=n)


def reading_of(study: Study, spec: str, found: Mapping[str, Drawn], *, n: int) -> Reading:
    """Read pictures by the judge's captions; the readings of several anchors are averaged.

    Args:
        study: What all readings share.
        spec: The lens.
        found: As :func:`draw_pictures` returns it.
        n: Bases.
    """
    whole, chosen, texts = study.whole, study.chosen, study.setup.judge_texts("content")
    pairs, rows = study.pairs.first(n), study.pairs.pairs_of_first(n)

    def changes(one: Drawn, *, shown: tuple[int, ...] | None = None) -> Changes:
        read = (caption_changes(texts, seen, pairs, shown=shown) for seen in one.seen)
        return Changes.mean([whole.changes(part, pairs, by_judge=True) for part in read])

    effects = study.effects.items()
    causal = {name: whole.changes(changed[np.ix_(rows, chosen.drawn)], pairs) for name, changed in effects}
    own, others = found["own"], {kind: one for kind, one in found.items() if kind not in ("own", "random")}
    return Reading(
        spec=spec, level="decoded", changes=changes(own), causal=causal,
        top=[chosen.drawn.index(i) for i in chosen.top],
        early=[chosen.drawn.index(i) for i in chosen.early if i in chosen.drawn],
        other=changes(own, shown=pairs.donors()), placebos=[changes(found["random"])],
        stand_ins={kind: [changes(one)] for kind, one in others.items()},
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


def _placebo(
    setup: StudySetup, spec: str, lens: Lens, held: Iterable[ViTActivationCache], sites: list[Site], draw: int
) -> Condition:
    """Return the lens of random directions of equal norm, another one for every image and site."""
    generator = setup.generator(STREAM, list(setup.lenses).index(spec) + 1, draw)
    return _cat(lens.read_control(cache, sites, generator=generator) for cache in held)


def _others(setup: StudySetup, spec: str) -> list[str]:
    """Return the controls beside the isotropic one that a lens has."""
    return setup.stand_ins.beside_random if setup.lenses[spec].has_controls else []


def _stand_in(
    setup: StudySetup, spec: str, lens: Lens, kind: str, held: Iterable[ViTActivationCache], sites: list[Site],
    draw: int,
) -> Condition:  # fmt: skip
    """Return the lens of another control; a base and its partner stand beside other images of their own."""
    generator = setup.generator(_STAND_INS, list(setup.lenses).index(spec) + 1, draw)
    return _cat(setup.stand_ins.read(kind, lens, held, sites, generator=generator, turn=draw))


def _see(setup: StudySetup, pairs: AttributePairs, asked: Condition, label: str) -> Float[Tensor, "image site d_judge"]:
    """Draw every row and let the judge look; a base, its partners and all their sites share their noise."""
    base_of = dict(zip(pairs.partner, pairs.base, strict=True))
    noise = setup.noise_of((base_of.get(image, image) for image in range(len(asked))), asked.rows[1])
    seen = setup.drawing("content").see_each(asked.flatten_rows(), noise, label=label)
    return seen.by("judge").unflatten(0, asked.rows)
