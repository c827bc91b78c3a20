"""Planted truth: does a lens find the one head that is known to tell an attribute?"""

__all__ = ["planted_study"]

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from tqdm import tqdm

from vit_lens.addresses import Site
from vit_lens.errors import StudyError
from vit_lens.studies.findings import StudyResult
from vit_lens.studies.planted.decoded import decoded_gaps, paired_rows
from vit_lens.studies.planted.examined import Examined, examine, read_bare
from vit_lens.studies.planted.labelled import LabelledAttribute
from vit_lens.studies.planted.plant_tables import decoded_scores, embedding_scores, head_rows, picture_rows, plant_row
from vit_lens.studies.planted.soil import KINDS, Plant, Soil
from vit_lens.studies.study_setup import StudySetup
from vit_lens.studies.usual_lenses import DECODED
from vit_lens.texts import TextBank

_STUDY = 4


def planted_study(
    setup: StudySetup,
    texts: TextBank,
    attributes: Sequence[LabelledAttribute],
    *,
    n_heads: int = 3,
    bar: float | int = 0.5,
    n_draws: int = 20,
    decoded: Sequence[str] = DECODED,
    n_plants_decoded: int = 2,
    n_decoded: int = 8,
    n_heads_decoded: int = 24,
    command: str | None = None,
) -> StudyResult:
    """Plant attributes in heads, one at a time, and let every lens look for the head.

    In each planted encoder one head alone writes what tells the two captions of an attribute apart (see
    :mod:`vit_lens.studies.planted.planted_weights`). That is checked by patching: the head must carry half of the
    contrast, no other head more than a tenth of it. A lens scores every head by the contrast that its embeddings, or
    its pictures as the judge reads them, show between the two classes.

    Each plant is made twice (:meth:`Soil.plant`): ``loud``, as strong as the whole encoder tells the attribute, and
    ``quiet``, with the size that the head had, so that size does not give it away.

    Args:
        setup: The setup, with a decoder and a judge unless ``decoded`` is empty; the judge has the attributes'
            captions.
        texts: Captions embedded by the encoder itself, with those of the attributes.
        attributes: The attributes, with their labels of the test and anchor images.
        n_heads: How many heads each attribute is planted in, drawn at random from those that can tell it.
        bar: The R2, 0 to 1, with which a probe of a head must tell the attribute, for a head that it is planted in.
        n_draws: How many draws each null has.
        decoded: Spellings of the setup's lenses whose pictures are read; none for a study before decoding.
        n_plants_decoded: How many plants of each kind are drawn.
        n_decoded: How many images are drawn, half of each class.
        n_heads_decoded: How many heads are drawn: the planted one, others at random.
        command: The command that makes the result again; None where there is none.

    Raises:
        StudyError: Nothing can be planted, or what the options ask for is not there.
        TextError: A bank lacks a caption.
    """
    setup.accept("planted", pooled_only=True)
    _check(setup, texts, attributes, decoded, n_heads, n_decoded, n_heads_decoded)
    notes: list[str] = []
    found = []
    with tqdm(total=len(attributes) * n_heads * len(KINDS), desc="plants", disable=not setup.progress) as shown:
        for soil in _soils(setup, texts, attributes, notes):
            before = read_bare(setup, texts, soil)
            for plant in _plants(soil, n_heads, bar, setup.seed, notes):
                seed = (setup.seed, _STUDY, 0, len(found))
                found.append(examine(setup, texts, plant, before=before, n_draws=n_draws, seed=seed))
                shown.update()
    notes += [_untrue(one) for one in found if not one.is_true]
    found = [one for one in found if one.is_true]
    if not found:
        raise StudyError("nothing could be planted: " + ("; ".join(notes) or "no head can tell an attribute"))
    scores = embedding_scores(found, seed=setup.seed)
    tables = {"plants": [plant_row(one) for one in found], "heads": [row for one in found for row in head_rows(one)]}
    if decoded:
        draw = partial(decoded_gaps, setup, n_images=n_decoded, n_heads=n_heads_decoded, n_draws=n_draws)
        pictured = [
            draw(one.plant, {name: one.lenses[name] for name in decoded}, seed=(setup.seed, _STUDY, 2, number))
            for number, one in enumerate(_to_draw(found, n_plants_decoded, setup.seed))
        ]
        scores += decoded_scores(pictured, seed=setup.seed)
        tables["pictures"] = [row for one in pictured for row in picture_rows(one)]
    options = {
        "attributes": {a.name: list(a.captions) for a in attributes}, "n_heads": n_heads, "bar": bar,
        "n_draws": n_draws, "decoded": list(decoded), "n_plants_decoded": n_plants_decoded, "n_decoded": n_decoded,
        "n_heads_decoded": n_heads_decoded,
    }  # fmt: skip
    return StudyResult(
        study="planted", setup=setup.describe(), options=options, scores=tuple(scores), tables=tables,
        notes=(*_NOTES, *notes), command=command,
    )  # fmt: skip


_NOTES = (
    "Planted encoders are the given one with some weights changed; they keep its embedding space (column 'cosine with "
    "the encoder' of the table plants), its id and its decoder.",
    "Embeddings are read with the encoder's own captions, along which the attribute was planted: this tests whether a "
    "lens finds the head, not whether captions are right. Pictures are read by the judge.",
    "A head found here is one that writes the attribute itself (direct effect). Heads that it gets the attribute from "
    "have total effects too, and count as others.",
)


def _check(
    setup: StudySetup,
    texts: TextBank,
    attributes: Sequence[LabelledAttribute],
    decoded: Sequence[str],
    n_heads: int,
    n_decoded: int,
    n_heads_decoded: int,
) -> None:
    if not attributes:
        raise StudyError("study planted needs attributes with labels and captions: LabelledImages.from_csv reads them")
    if n_heads < 1:
        raise StudyError(f"n_heads={n_heads}; plant each attribute in at least one head")
    texts.check(setup.model)
    if missing := [name for name in decoded if name not in setup.lenses]:
        raise StudyError(f"decoded lenses {missing} are not in the setup, which has {list(setup.lenses)}")
    if decoded and (n_decoded < 4 or n_decoded % 2):
        raise StudyError(f"n_decoded={n_decoded}; give an even number of at least 4, half of each class")
    if decoded and n_heads_decoded < 2:
        raise StudyError(
            f"n_heads_decoded={n_heads_decoded}; the planted head needs others to be told from, at least 2"
        )
    judged = [setup.judge_texts("planted")] if decoded else []
    for attribute in attributes:
        for kind, images in (("anchor", setup.images.anchor), ("test", setup.images.test)):
            if len(getattr(attribute, kind)) != len(images):
                raise StudyError(
                    f"attribute {attribute.name!r} labels {len(getattr(attribute, kind))} {kind} images, the setup has "
                    f"{len(images)}: labels and setup must come from the same LabelledImages"
                )
        if decoded:
            paired_rows(attribute.test, n_decoded // 2)  # refuses too few images before anything is drawn
        for caption in attribute.captions:
            for bank in (texts, *judged):
                bank.index(caption)


def _soils(
    setup: StudySetup, texts: TextBank, attributes: Sequence[LabelledAttribute], notes: list[str]
) -> Iterator[Soil]:
    for attribute in attributes:
        try:
            yield Soil.of(setup.model, texts, attribute, setup.anchor_pixels)
        except StudyError as error:
            if len(attributes) == 1:
                raise
            notes.append(f"left out: {error}")


def _plants(soil: Soil, n_heads: int, bar: float | int, seed: int, notes: list[str]) -> Iterator[Plant]:
    able = [site for site in Site.heads(soil.bare) if soil.r_squared(site) >= bar]
    name = soil.attribute.name
    if len(able) < n_heads:
        notes.append(f"{name}: {len(able)} heads can tell it (R2 at least {bar}), {n_heads} were asked for")
    chosen = np.random.default_rng([seed, _STUDY, *name.encode()]).permutation(len(able))[:n_heads]
    yield from (soil.plant(able[i], kind, bar=bar) for i in sorted(chosen) for kind in KINDS)


def _to_draw(found: Sequence[Examined], n: int, seed: int) -> list[Examined]:
    """Return some plants of each kind, at random."""
    generator = np.random.default_rng([seed, _STUDY, 1])
    drawn = []
    for kind in KINDS:
        of_kind = [one for one in found if one.plant.kind == kind]
        drawn += [of_kind[i] for i in sorted(generator.permutation(len(of_kind))[:n])]
    return drawn


def _untrue(one: Examined) -> str:
    plant = one.plant
    return (
        f"{plant.attribute.name}, {plant.kind}, in {plant.site} was left out: patching this head alone carries "
        f"{one.patched.direct[one.at]:.2f} of the contrast, another one up to {one.largest_other:.2f}"
    )
