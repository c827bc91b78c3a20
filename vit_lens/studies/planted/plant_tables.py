"""Scores and tables of the study of planted truth."""

__all__ = ["FINDS", "FIRST", "LEAKS", "decoded_scores", "embedding_scores", "head_rows", "picture_rows", "plant_row"]

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vit_lens.addresses import Site
from vit_lens.studies.findings import Null, Score
from vit_lens.studies.planted.decoded import DecodedGaps
from vit_lens.studies.planted.examined import Examined
from vit_lens.studies.planted.recovery import LensGaps
from vit_lens.studies.planted.soil import KINDS, Kind, Plant
from vit_lens.studies.stand_ins import NULLS
from vit_lens.studies.statistics import auc, finite_mean, mean_interval

FINDS = "AUC of the planted head"
FIRST = "planted head ranked first"
LEAKS = "shown by the median other head, as a share of the head that shows most"

_Scores = Float[np.ndarray, " head"]
_Statistic = Callable[[Float[np.ndarray, " head"], int], float | None]


def embedding_scores(found: Sequence[Examined], *, seed: int) -> list[Score]:
    """Return the scores before decoding, for each kind of plant there is: of every lens, and of norms without one."""
    scores = []
    for measure, kind, statistic in _measures():
        some = [one for one in found if one.plant.kind == kind]
        places = [one.at for one in some]
        for name in found[0].gaps if some else ():
            controls = {}
            if statistic is not _leaks:
                controls["before planting"] = finite_mean([statistic(one.before[name].real, one.at) for one in some])
            gaps = [one.gaps[name] for one in some]
            scores.append(_score(measure, name, "embedding", statistic, gaps, places, seed, controls))
        if some and statistic is not _leaks:
            for name in found[0].norms:
                scores.append(_plain(measure, name, [statistic(one.norms[name], one.at) for one in some], seed))
    return scores


def decoded_scores(found: Sequence[DecodedGaps], *, seed: int) -> list[Score]:
    """Return the scores of pictures, as the judge reads them; the planted head is the first."""
    scores = []
    for measure, kind, statistic in _measures():
        some = [one for one in found if one.plant.kind == kind]
        for name in found[0].gaps if some else ():
            gaps = [one.gaps[name] for one in some]
            scores.append(_score(measure, name, "decoded", statistic, gaps, [0] * len(some), seed, {}))
    return scores


def plant_row(one: Examined) -> dict[str, Any]:
    """Return what is known of a plant, and where each lens ranks it."""
    row: dict[str, Any] = _named(one.plant)
    row |= {"R2 of the probe": one.plant.r_squared, "cosine with the encoder": one.kept}
    row |= {"contrast of the encoder": one.contrasts[0], "contrast planted": one.contrasts[1]}
    row |= {"direct share": float(one.patched.direct[one.at]), "largest direct share of another": one.largest_other}
    others = np.abs(np.delete(one.patched.total, one.at))
    row |= {"total share": float(one.patched.total[one.at]), "largest total share of another": float(others.max())}
    return row | {f"AUC, {name}": _auc(gaps.real, one.at) for name, gaps in one.gaps.items()}


def head_rows(one: Examined) -> list[dict[str, Any]]:
    """Return every head of a planted encoder: its truth, its norms, and what every lens shows of the attribute."""
    rows = []
    for index, site in enumerate(Site.heads(one.plant.model)):
        row: dict[str, Any] = _named(one.plant)
        row |= {"site": str(site), "is planted": index == one.at}
        row |= {"direct share": float(one.patched.direct[index]), "total share": float(one.patched.total[index])}
        row |= {name: float(norms[index]) for name, norms in one.norms.items()}
        rows.append(row | {name: float(gaps.real[index]) for name, gaps in one.gaps.items()})
    return rows


def picture_rows(one: DecodedGaps) -> list[dict[str, Any]]:
    """Return every head of a planted encoder whose pictures were read: what they show, and what the placebo's do."""
    rows = []
    for index, site in enumerate(one.heads):
        row: dict[str, Any] = _named(one.plant)
        row |= {"site": str(site), "is planted": index == 0, "pictures of the inputs": one.clean}
        for name, gaps in one.gaps.items():
            row |= {name: float(gaps.real[index]), f"{name}, placebo": float(gaps.placebo[0, index])}
        rows.append(row)
    return rows


def _named(plant: Plant) -> dict[str, Any]:
    return {"attribute": plant.attribute.name, "planted": str(plant.site), "kind": plant.kind}


def _score(
    measure: str,
    name: str,
    level: str,
    statistic: _Statistic,
    gaps: Sequence[LensGaps],
    places: Sequence[int],
    seed: int,
    controls: dict[str, float | None],
) -> Score:
    values = [statistic(of.real, at) for of, at in zip(gaps, places, strict=True)]
    nulls = {}
    if statistic is not _leaks:  # a placebo has nothing that others could show a share of
        for null, draws in (("equal-norm placebo", "placebo"), ("classes shuffled", "shuffled")):
            per_plant = [
                [statistic(draw, at) for draw in getattr(of, draws)] for of, at in zip(gaps, places, strict=True)
            ]
            nulls[null] = Null.of([finite_mean(list(draw)) for draw in zip(*per_plant, strict=True)])
        for kind in dict.fromkeys(kind for of in gaps for kind in of.stand_ins):
            drawn = [[statistic(draw, at) for draw in of.stand_ins[kind]] for of, at in zip(gaps, places, strict=True)]
            nulls[NULLS.get(kind, kind)] = Null.of([finite_mean(list(draw)) for draw in zip(*drawn, strict=True)])
    return _plain(measure, name, values, seed, level=level, nulls=nulls, controls=controls)


def _plain(
    measure: str,
    name: str,
    values: Sequence[float | None],
    seed: int,
    *,
    level: str = "embedding",
    nulls: dict[str, Null] | None = None,
    controls: dict[str, float | None] | None = None,
) -> Score:
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    return Score(
        measure=measure, reading=name, level=level, estimate=mean_interval(known, seed=seed), n=len(known),
        unit="plants", nulls=nulls or {}, controls=controls or {},
    )  # fmt: skip


def _auc(scores: _Scores, at: int) -> float | None:
    return auc(scores, np.arange(len(scores)) == at)


def _first(scores: _Scores, at: int) -> float | None:
    if not np.isfinite(scores).all():
        return None
    return float(scores[at] > np.delete(scores, at).max())


def _leaks(scores: _Scores, at: int) -> float | None:
    """Return at most 1; None where no head shows anything of the attribute."""
    if not np.isfinite(scores).all() or scores.max() <= 0:
        return None
    return float(np.median(np.delete(scores, at)) / scores.max())


def _measures() -> list[tuple[str, Kind, _Statistic]]:
    return [(f"{measure}, {kind} plants", kind, how) for kind in KINDS for measure, how in _STATISTICS.items()]


_STATISTICS: dict[str, _Statistic] = {FINDS: _auc, FIRST: _first, LEAKS: _leaks}
