"""Faithfulness: does the decoder draw the embedding that it is given, whatever its noise, and does it matter?"""

__all__ = ["SITES", "faithfulness_study"]

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from vit_lens.addresses import Site, Sites
from vit_lens.conditions import Condition
from vit_lens.errors import StudyError
from vit_lens.lenses import Lens
from vit_lens.metrics import DRAWN_THRESHOLD
from vit_lens.studies.faithfulness.drawn import Drawn, draw, rows_alike
from vit_lens.studies.findings import Null, Score, StudyResult
from vit_lens.studies.seen_pictures import Judge
from vit_lens.studies.similarities import held_caches, read_conditions
from vit_lens.studies.stand_ins import NULLS
from vit_lens.studies.statistics import Estimate, finite, finite_mean, mean_interval, spearman
from vit_lens.studies.study_setup import StudySetup

SITES = ("heads", "mlp", "resid_post")
CEILING = "clean embeddings"

_STUDY = 6  # of the streams of random numbers
_BELOW = f"share of pictures below {DRAWN_THRESHOLD:g}"
_MEASURES: Mapping[str, Callable[[Drawn], Float[np.ndarray, "image site"] | None]] = {
    "faithfulness": lambda drawn: drawn.faithfulness.mean(-1),
    _BELOW: lambda drawn: (drawn.faithfulness < DRAWN_THRESHOLD).mean(-1),
    "range over noise seeds": lambda drawn: np.ptp(drawn.faithfulness, axis=-1) if drawn.n_seeds > 1 else None,
    "closer to its own embedding than to another site's": lambda drawn: drawn.recognised(),
    "agreement of the judge over noise seeds": lambda drawn: drawn.judge_agreement(),
    "the judge sees what was asked": lambda drawn: drawn.judge_relations(),
}
_PREDICTED = ("agreement of the judge over noise seeds", "the judge sees what was asked")
_BATCH = 64
_NOTES = (
    "faithfulness: the cosine of the picture's embedding, by the encoder that asked for it, with the embedding asked "
    "for. The decoder was made for this encoder, so a high value says that the picture was drawn, not that it is "
    "true of the site.",
    "closer to its own embedding: over the other sites of the image, how often the picture lies nearer to what it was "
    "asked to show; chance is 0.5.",
    "the judge sees what was asked: the rank correlation, over the other sites of the image, of the judge's "
    "similarities between pictures with the encoder's similarities between the embeddings asked for.",
    "Placebo pictures are drawn once each, image i with noise seed i modulo the number of noise seeds.",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Reading:
    """One lens with its sites: its pictures, those of a random direction of equal norm, and of further controls."""

    sites: list[Site]
    drawn: Drawn
    placebo: Drawn
    others: Mapping[str, Drawn]


def faithfulness_study(
    setup: StudySetup,
    *,
    sites: Sites = SITES,
    n_shuffles: int = 200,
    controls: Sequence[str] = ("random",),
    command: str | None = None,
) -> StudyResult:
    """Draw every site with every noise seed, and hold each picture against the embedding that it was asked to show.

    Beside every lens: pictures of a random direction of equal norm, clean embeddings (what the decoder can do at
    best), and pictures held against the embedding of another site or of another image (what all of them share).

    Args:
        setup: The setup, with a decoder; with a judge, its readings are tested too. Every lens of it is drawn.
        sites: The sites that are drawn, or groups of them; each lens reads those that it is defined on.
        n_shuffles: How many draws each null has.
        controls: Of which pictures are drawn, each of every site and image once; the isotropic one always is.
        command: The command that makes this result again; None where there is none.

    Raises:
        StudyError: No decoder, fewer than two images, or a lens that reads fewer than three of the sites.
        UnknownSiteError: A site is not the model's.
    """
    setup.accept("faithfulness", pooled_only=False)
    setup.drawing("faithfulness")
    if len(setup.pixels) < 2:
        raise StudyError("faithfulness holds pictures against those of another image: give at least two test images")
    resolved = Site.resolve(sites, setup.model.cfg)
    lenses = _each(setup.lenses)
    own = {spec: _own_sites(spec, lens, resolved) for spec, lens in lenses.items()}
    ceiling = draw(setup, _whole(setup), label="clean embeddings")
    kinds = setup.stand_ins.check(controls, setup.lenses.values())
    readings = {
        spec: _read(setup, spec, lens, own[spec], kinds, number) for number, (spec, lens) in enumerate(lenses.items())
    }
    scores = [
        score
        for number, (spec, one) in enumerate(readings.items())
        for score in _scores(setup, spec, one, ceiling, n_shuffles, number)
    ]
    scores += _ceiling_scores(setup, ceiling)
    scores += _prediction_scores(setup, readings, n_shuffles)
    table = [row for spec, one in readings.items() for row in _site_rows(setup, spec, one)]
    judged = setup.pictures is not None and setup.pictures.judge is not None
    return StudyResult(
        study="faithfulness", setup=setup.describe(), scores=tuple(scores), command=command,
        options={
            "sites": [str(site) for site in resolved], "n_shuffles": n_shuffles, "threshold": DRAWN_THRESHOLD,
            "controls": ["random", *kinds],
        },
        tables={"sites": table, "layers": _layer_rows(table)},
        notes=_NOTES if judged else (*_NOTES, "No judge was given: what it would say of the pictures is left out."),
    )  # fmt: skip


@torch.no_grad()
def _whole(setup: StudySetup) -> Condition:
    """Return what the images themselves are, to the decoder: the best that it can be asked for."""
    decoder = setup.drawing("faithfulness").decoder
    parts = [decoder.read(setup.model, pixels).kept() for pixels in setup.pixels.split(_BATCH)]
    return Condition.cat(parts).map(lambda part: part[:, None])


def _own_sites(spec: str, lens: Lens, sites: list[Site]) -> list[Site]:
    own = [site for site in sites if lens.reads(site)]
    if len(own) < 3:
        raise StudyError(f"{spec} is defined on {len(own)} of the sites; similarities need at least 3: give more sites")
    return own


def _each(lenses: Mapping[str, Lens]) -> dict[str, Lens]:
    """Return the lenses; of one that starts from several anchors, one for each of them."""
    found: dict[str, Lens] = {}
    for spec, lens in lenses.items():
        apart = lens.each()
        named = {spec: lens} if len(apart) == 1 else {f"{spec}, anchor {i + 1}": one for i, one in enumerate(apart)}
        found |= named
    return found


def _read(setup: StudySetup, spec: str, lens: Lens, own: list[Site], kinds: Sequence[str], number: int) -> _Reading:
    generator = setup.generator(_STUDY, number)
    read = read_conditions(setup.model, setup.pixels, lens, lambda cache: lens.read(cache, own))
    placebo = read_conditions(
        setup.model, setup.pixels, lens, lambda cache: lens.read_control(cache, own, generator=generator)
    )
    others = {}
    for kind in kinds:
        held = held_caches(setup.model, setup.pixels, [lens])
        read_other = setup.stand_ins.read(kind, lens, held, own, generator=setup.generator(_STUDY, 300))
        asked = Condition.cat([found.kept() for found in read_other])
        others[kind] = draw(setup, asked, nested=True, label=f"{spec}, {NULLS.get(kind, kind)}")
    return _Reading(
        sites=own,
        others=others,
        drawn=draw(setup, read, label=spec),
        placebo=draw(setup, placebo, nested=True, label=f"{spec}, placebo"),
    )


def _scores(
    setup: StudySetup, spec: str, one: _Reading, ceiling: Drawn, n_shuffles: int, number: int
) -> Iterator[Score]:
    generator = np.random.default_rng([setup.seed, _STUDY, 100 + number])
    relations = _encoders_alike(setup, len(one.sites))
    for measure, of in _MEASURES.items():
        if (found := of(one.drawn)) is None:
            if measure not in _PREDICTED:
                yield _score(measure, spec, None, setup, why="one noise seed has no range")
            continue
        controls: dict[str, float | None] = {}
        if (placebo := of(one.placebo)) is not None:
            controls["equal-norm placebo"] = finite_mean(placebo)
        for kind, other in one.others.items():
            if (seen := of(other)) is not None:
                controls[NULLS.get(kind, kind)] = finite_mean(seen)
        if measure in _PREDICTED[1:]:
            controls["the two encoders on real images"] = relations
        elif (best := of(ceiling)) is not None and np.isfinite(best).any():
            controls[CEILING] = finite_mean(best)
        nulls = _shuffles(one.drawn, n_shuffles, generator) if measure == "faithfulness" else {}
        yield _score(measure, spec, found, setup, nulls=nulls, controls=controls)


def _ceiling_scores(setup: StudySetup, ceiling: Drawn) -> Iterator[Score]:
    for measure in ("faithfulness", _BELOW, "range over noise seeds"):
        found = _MEASURES[measure](ceiling)
        if found is not None:
            yield _score(measure, CEILING, found, setup)


def _prediction_scores(setup: StudySetup, readings: Mapping[str, _Reading], n_shuffles: int) -> Iterator[Score]:
    """Correlate, within each image and over its sites, faithfulness with whether the judge can be believed."""
    for number, (spec, one) in enumerate(readings.items()):
        x = one.drawn.faithfulness.mean(-1)
        for measure in _PREDICTED:
            if (y := _MEASURES[measure](one.drawn)) is None:
                continue
            generator = np.random.default_rng([setup.seed, _STUDY, 200 + number])
            shuffled = [_within_images(generator.permuted(x, axis=1), y) for _ in range(n_shuffles)]
            null = Null.of([finite_mean(draw) for draw in shuffled])
            name = f"faithfulness predicts: {measure}"
            yield _score(name, spec, _within_images(x, y)[:, None], setup, nulls={"sites shuffled": null})


def _within_images(
    x: Float[np.ndarray, "image site"], y: Float[np.ndarray, "image site"]
) -> Float[np.ndarray, " image"]:
    found = [spearman(a[known], b[known]) for a, b in zip(x, y, strict=True) for known in [np.isfinite(a + b)]]
    return np.array(found, dtype=np.float64)


def _shuffles(drawn: Drawn, n: int, generator: np.random.Generator) -> dict[str, Null]:
    nulls = {"picture of another site": 1, "picture of another image": 0}
    return {
        name: Null.of([float(np.nanmean(drawn.exchanged(axis, generator))) for _ in range(n)])
        for name, axis in nulls.items()
    }


def _score(
    measure: str, reading: str, found: Float[np.ndarray, "image site"] | None, setup: StudySetup, *,
    why: str | None = None, nulls: Mapping[str, Null] | None = None, controls: Mapping[str, float | None] | None = None,
) -> Score:  # fmt: skip
    """Average over sites within each image; images are what the interval is over."""
    if found is None:
        estimate, n = Estimate(None, why=why), 0
    else:
        known = [row[np.isfinite(row)] for row in found]
        means = np.array([row.mean() for row in known if len(row)])
        estimate, n = mean_interval(means, seed=setup.seed), len(means)
    return Score(
        measure=measure, reading=reading, level="decoded", estimate=estimate, n=n, unit="images",
        nulls=nulls or {}, controls=controls or {},
    )  # fmt: skip


def _encoders_alike(setup: StudySetup, n: int) -> float | None:
    """Return how far the judge's similarities between real images follow the encoder's: the most that can be asked."""
    judge: Judge | None = setup.pictures and setup.pictures.judge
    if judge is None:
        return None
    images = list(setup.images.anchor)[: max(n, 3)]
    with torch.no_grad():
        own = setup.model(setup.anchor_pixels[: len(images)]).float().cpu()
        seen = judge.model(judge.model.preprocess(images)).float().cpu()
    return finite_mean(rows_alike(own, seen))


def _site_rows(setup: StudySetup, spec: str, one: _Reading) -> Iterator[dict[str, Any]]:
    drawn, placebo = one.drawn, one.placebo.faithfulness[..., 0]
    extra = {
        name: _MEASURES[name](drawn) for name in ("closer to its own embedding than to another site's", *_PREDICTED)
    }
    for image, found in enumerate(drawn.faithfulness):
        for index, site in enumerate(one.sites):
            values = found[index]
            yield {
                "reading": spec, "image": image, "site": str(site), "kind": site.kind, "layer": site.layer,
                "faithfulness": finite(values.mean()), "lowest": finite(values.min()), "highest": finite(values.max()),
                "share below threshold": finite((values < DRAWN_THRESHOLD).mean()),
                "placebo": finite(placebo[image, index]),
                **{
                    NULLS.get(kind, kind): finite(other.faithfulness[image, index, 0])
                    for kind, other in one.others.items()
                },
            } | {name: finite(table[image, index]) for name, table in extra.items() if table is not None}  # fmt: skip


def _layer_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average over images and sites: one row for each lens, kind of site and layer."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["reading"], row["kind"], row["layer"]), []).append(row)
    out = []
    for (reading, kind, layer), some in groups.items():
        numbers = [key for key in some[0] if key not in ("reading", "image", "site", "kind", "layer")]
        means = {key: finite_mean([row[key] for row in some]) for key in numbers}
        out.append({"reading": reading, "kind": kind, "layer": layer, "n": len(some), **means})
    return out
