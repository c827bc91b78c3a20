"""Two decoders: do they draw the same of a site, and where they do, does the picture show what the site does?"""

__all__ = ["HEADLINES", "decoders_study"]

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from vit_lens.addresses import Sites
from vit_lens.decoders import settings_dict
from vit_lens.errors import StudyError
from vit_lens.records import agreement_table
from vit_lens.studies.content import (
    AttributePairs,
    Drawn,
    Reading,
    Study,
    cross_agreement,
    draw_pictures,
    open_study,
    reading_of,
    spellings_drawn,
)
from vit_lens.studies.findings import Null, Score, StudyResult
from vit_lens.studies.seen_pictures import Pictures
from vit_lens.studies.stand_ins import NULLS
from vit_lens.studies.statistics import finite, finite_mean, jackknife, spearman
from vit_lens.studies.study_setup import StudySetup
from vit_lens.texts import TextBank

AGREEMENT, EXCESS = "agreement of two decoders", "agreement of two decoders above mismatched sites"
_SIGN = "agreement above mismatched sites as a sign of content, total effect, by the {} decoder"
_ORDER = ("first", "second")
HEADLINES = (EXCESS, *(_SIGN.format(name) for name in _ORDER))
"""The measures that the protocol decides by."""

_STUDY = 8  # of the streams of random numbers
_PLACEBO = NULLS["random"]
_LEAST = 3
_NOTES = (
    "Agreement: the cosine of two decoders' pictures of the same embedding, with the same noise seed, as the judge "
    "sees them; the mean over sites, and over bases and their partners. Mismatched sites: the first decoder's picture "
    "of a site against the second's of the other drawn sites of the same image.",
    "A sign of content: Spearman's correlation, over sites, of that excess with the site's agreement in the content "
    "study (across attributes, with total effects), as pictures of one of the decoders show it. Placebo: the same of "
    "random directions of equal norm, with the effects of the sites that they stand for. Intervals: jackknife over "
    "bases.",
    "Two decoders agree about an embedding, whatever wrote it.",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Pair:
    """What two decoders drew of one lens, or of its placebo.

    Attributes:
        agreement: The cosine of the two pictures, for every base, summed over the base and its partners.
        mismatched: The mean cosine with pictures of the other sites, in the same form.
        counts: How many images a base has.
        readings: What attributes change in the pictures of either.
    """

    agreement: Float[np.ndarray, "base site"]
    mismatched: Float[np.ndarray, "base site"]
    counts: Int[np.ndarray, " base"]
    readings: tuple[Reading, Reading]

    def per_site(self, bases: Int[np.ndarray, " row"] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return agreement and its null by site, over some bases."""
        rows = np.arange(len(self.counts)) if bases is None else bases
        n = self.counts[rows].sum()
        return self.agreement[rows].sum(0) / n, self.mismatched[rows].sum(0) / n

    def content(self, which: int, bases: Int[np.ndarray, " row"] | None = None) -> Float[np.ndarray, " site"] | None:
        """Return each site's agreement with its own total effects, as pictures of a decoder show it."""
        reading = self.readings[which]
        found, true = reading.changes.shares(bases), reading.causal["total effect"].shares(bases)
        return None if found is None or true is None else np.diagonal(cross_agreement(found, true))


def decoders_study(
    setup: StudySetup,
    second: Pictures,
    pairs: AttributePairs,
    texts: TextBank,
    *,
    sites: Sites = ("heads", "mlp"),
    decoded: Sequence[str] | None = None,
    n_decoded: int = 3,
    n_largest: int = 24,
    n_random: int = 12,
    n_shuffles: int = 200,
    command: str | None = None,
) -> StudyResult:
    """Hold what two decoders draw of a site against each other, and their agreement against what the site does.

    Args:
        setup: The setup, as of the content study; its decoder is the first.
        second: What draws with the second decoder, read by the same judge.
        pairs: Base images and their partners, with captions for each attribute.
        texts: Captions embedded by the encoder, those of the pairs among them.
        sites: The sites of which some are drawn, chosen as in the content study.
        decoded: Spellings of the lenses that are drawn; None takes the usual ones that the setup has.
        n_decoded: How many bases are drawn with their partners, at most.
        n_largest: How many sites with the largest total effects are drawn.
        n_random: How many of the others, at random.
        n_shuffles: How many draws the null of shuffled sites has.
        command: The command that makes this result again; None where there is none.

    Raises:
        StudyError: There is no first decoder or judge, both decoders are the same, another judge reads the second,
            fewer than three sites are drawn, or what the content study refuses.
        TextError: The captions are another encoder's.
        UnknownSiteError: A site is not the model's.
        LensError: A lens is not defined on a site.
    """
    setup.accept("decoders", pooled_only=False)
    _check(setup, second)
    specs = spellings_drawn(setup, decoded)
    study = open_study(setup, pairs, texts, sites=sites, n_largest=n_largest, n_random=n_random, top=1)
    if len(study.chosen.drawn) < _LEAST:
        raise StudyError(
            f"{len(study.chosen.drawn)} site(s) are drawn: a picture is held against those of other sites, and a "
            f"correlation over sites needs {_LEAST}; give --sites heads,mlp, or more"
        )
    n = min(n_decoded, len(pairs.bases))
    scores: list[Score] = []
    columns: dict[str, Mapping[str, _Pair]] = {}
    for number, spec in enumerate(specs):
        columns[spec] = _drawn_twice(study, second, spec, n)
        scores += _scores(spec, columns[spec], seed=[setup.seed, _STUDY, number], n_shuffles=n_shuffles)
    return StudyResult(
        study="decoders", scores=tuple(scores), command=command,
        setup={
            **setup.describe(), "second_decoder": second.decoder.decoder_id,
            "second_settings": settings_dict(second.settings),
        },
        options={
            "decoded": specs, "n_bases": n, "n_largest": n_largest,
            "n_random": n_random, "n_shuffles": n_shuffles, "attributes": list(pairs.attributes),
            "sites": [str(site) for site in study.sites],
        },
        tables={"sites": _rows(study, columns)}, notes=_NOTES,
    )  # fmt: skip


def _check(setup: StudySetup, second: Pictures) -> None:
    first, judge = setup.drawing("decoders"), setup.judge("decoders")
    if second.judge is None or second.judge.model.fingerprint != judge.model.fingerprint:
        raise StudyError("another judge reads the second decoder's pictures: replace(setup.pictures, decoder=...)")
    if second.decoder.decoder_id == first.decoder.decoder_id or second.decoder.fingerprint == first.decoder.fingerprint:
        raise StudyError(
            f"{second.decoder.decoder_id} is both decoders, which agree in everything they make up; give another one "
            "(--second-decoder), such as mini-ip for mini"
        )


def _drawn_twice(study: Study, second: Pictures, spec: str, n: int) -> dict[str, _Pair]:
    """Draw one lens and its placebo with both decoders."""
    studies = study, replace(study, setup=replace(study.setup, pictures=second))
    found = [draw_pictures(one, spec, n=n) for one in studies]
    readings = [reading_of(study, spec, one, n=n) for one in found]
    placebos = [replace(reading, changes=reading.placebos[0]) for reading in readings]
    read = {"own": readings, _PLACEBO: placebos}
    kinds = {"own": "own", _PLACEBO: "random"}
    return {name: _compared(study, n, *(one[kind] for one in found), *read[name]) for name, kind in kinds.items()}


def _compared(study: Study, n: int, first: Drawn, second: Drawn, *readings: Reading) -> _Pair:
    """Compare two decoders' pictures row by row; anchors are averaged."""
    n_images, n_sites = first.seen[0].shape[:2]
    table = pd.DataFrame({
        "row": np.arange(n_images * n_sites), "input": np.repeat(np.arange(n_images), n_sites), "reading": "", "seed": 0
    })  # fmt: skip
    parts = [
        agreement_table(table, one.flatten(0, 1), other.flatten(0, 1), asked.flatten_rows().flat)
        for one, other, asked in zip(first.seen, second.seen, first.asked, strict=True)
    ]
    mean = {
        name: np.mean([part[name].to_numpy() for part in parts], axis=0).reshape(n_images, n_sites)
        for name in ("agreement", "agreement_null")
    }
    pairs = study.pairs.first(n)
    base_of = np.array([*range(n), *pairs.base])  # bases stand first, then a partner for each pair
    member = base_of[None] == np.arange(n)[:, None]
    return _Pair(
        agreement=member @ mean["agreement"], mismatched=member @ mean["agreement_null"], counts=member.sum(1),
        readings=(readings[0], readings[1]),
    )  # fmt: skip


def _scores(spec: str, found: Mapping[str, _Pair], *, seed: list[int], n_shuffles: int) -> Iterator[Score]:
    own, placebo = found["own"], found[_PLACEBO]

    def score(measure: str, of: Callable[[_Pair, Any], float | None], most: float, nulls: Mapping[str, Null]) -> Score:
        return Score(
            measure=measure, reading=spec, level="decoded", n=len(own.counts), unit="bases",
            estimate=jackknife(lambda bases: of(own, bases), len(own.counts), most=most),
            nulls={**nulls, _PLACEBO: Null.of([of(placebo, None)])},
        )  # fmt: skip

    mismatched = Null.of([finite_mean(own.per_site()[1])])
    yield score(
        AGREEMENT, lambda one, bases: finite_mean(one.per_site(bases)[0]), 1.0, {"mismatched sites": mismatched}
    )
    yield score(EXCESS, lambda one, bases: finite_mean(np.subtract(*one.per_site(bases))), 2.0, {})
    for which, name in enumerate(_ORDER):

        def of(one: _Pair, bases: Any, order: Any = slice(None), which: int = which) -> float | None:
            content = one.content(which, bases)
            return None if content is None else _alike(np.subtract(*one.per_site(bases))[order], content)

        generator = np.random.default_rng([*seed, which])
        orders = [generator.permutation(own.agreement.shape[1]) for _ in range(n_shuffles)]
        shuffled = Null.of([of(own, None, order) for order in orders])
        yield score(_SIGN.format(name), of, 1.0, {"shuffled sites": shuffled})


def _alike(a: Float[np.ndarray, " site"], b: Float[np.ndarray, " site"]) -> float | None:
    known = np.isfinite(a) & np.isfinite(b)
    return spearman(a[known], b[known])


def _rows(study: Study, columns: Mapping[str, Mapping[str, _Pair]]) -> list[dict[str, Any]]:
    """Give each drawn site, and for every lens what two decoders have in common there and what their pictures show."""
    rows: list[dict[str, Any]] = [
        {"site": str(study.sites[i]), "drawn as": study.chosen.why.get(i)} for i in study.chosen.drawn
    ]
    for spec, found in columns.items():
        agreement, mismatched = found["own"].per_site()
        for place, row in enumerate(rows):
            row[f"{spec}, agreement"], row[f"{spec}, mismatched"] = finite(agreement[place]), finite(mismatched[place])
        for which, name in enumerate(_ORDER):
            content = found["own"].content(which)
            for place, row in enumerate(rows):
                row[f"{spec}, content by the {name}"] = None if content is None else finite(content[place])
    return rows
