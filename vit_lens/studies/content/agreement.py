"""Scores of the content study: does a site's picture change in those attributes that the site changes?"""

__all__ = ["CEILING", "DIRECT", "EARLY", "Reading", "baseline_scores", "cross_agreement", "reading_scores"]

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from vit_lens.interventions import derangement
from vit_lens.studies.content.effects import Changes
from vit_lens.studies.findings import Null, Score
from vit_lens.studies.stand_ins import NULLS
from vit_lens.studies.statistics import Estimate, finite_mean, jackknife

CEILING = "total effect, half of the bases against the other (ceiling)"
DIRECT = "direct effect (no lens)"
EARLY = "early MLPs"

_FLAT = 1e-12
_Statistic = Callable[[np.ndarray | None], float | None]
_Effects = dict[str, Changes]  # "total effect" and "direct effect"


@dataclass(frozen=True, eq=False, kw_only=True)
class Reading:
    """What one lens says at one level, beside the same of its controls.

    Attributes:
        spec: The lens.
        level: ``embedding`` or ``decoded``.
        changes: Its changes.
        causal: By name, the changes that the same sites cause in the same bases.
        top: Which of the sites have the largest total effect.
        early: Which of the sites are MLPs of the first half of the layers, which act through other rows.
        other: Its changes when each pair is read off another base's pictures.
        placebos: Its changes for random directions of equal norm, one draw each.
        stand_ins: The same for other controls, by name: another image's output, a covariance-matched direction.
    """

    spec: str
    level: str
    changes: Changes
    causal: _Effects
    top: list[int]
    early: list[int] = field(default_factory=list)
    other: Changes | None = None
    placebos: list[Changes] = field(default_factory=list)
    stand_ins: Mapping[str, list[Changes]] = field(default_factory=dict)

    @property
    def subsets(self) -> dict[str, list[int]]:
        """The sites that scores are over, by name."""
        early = {EARLY: self.early} if len(self.early) > 2 else {}
        return {"sites": list(range(self.changes.sums.shape[1])), "top sites": self.top} | early


def reading_scores(reading: Reading, *, seed: int, n_shuffles: int) -> Iterator[Score]:
    """Give the agreement within sites for total and direct effects, and its excess over shuffled sites.

    Args:
        reading: Of one lens.
        seed: Of shuffles.
        n_shuffles: Draws of the null of shuffled sites.
    """
    for subset, sites in reading.subsets.items():
        changes = reading.changes.take(sites)
        for effect, whole in reading.causal.items():
            causal = whole.take(sites)
            for measure, of in _MEASURES.items():
                cross = _cross(changes, causal)
                other = None if reading.other is None else _cross(reading.other.take(sites), causal)
                yield Score(
                    measure=f"{measure} within {subset}, {effect}", reading=reading.spec, level=reading.level,
                    estimate=_interval(changes, causal, of), n=len(changes.sums), unit="bases",
                    nulls=({} if of is _excess else {"shuffled sites": Null.of(_shuffled(cross, n_shuffles, seed))})
                    | _placebo(reading, sites, causal, of),
                    controls={} if reading.other is None else {"same site, other image": of(other)},
                )  # fmt: skip


def baseline_scores(
    causal: _Effects, top: list[int], early: list[int], *, seed: int, n_shuffles: int
) -> Iterator[Score]:
    """Give what needs no lens: the direct effect as a reading, and how well one half of the bases predicts the other.

    Args:
        causal: Of all sites and bases.
        top: Which sites have the largest total effect.
        early: Which are MLPs of the first half of the layers.
        seed: Of shuffles.
        n_shuffles: Draws of the null of shuffled sites.
    """
    total = {"total effect": causal["total effect"]}
    halves = [_bases(causal["total effect"], start) for start in (0, 1)]
    which = {"level": "embedding", "top": top, "early": early}
    readings = [Reading(spec=DIRECT, changes=causal["direct effect"], causal=total, **which)]
    if len(halves[1].sums):
        ceiling = {"total effect": halves[1]}
        readings.append(Reading(spec=CEILING, changes=halves[0], causal=ceiling, **which))
    for reading in readings:
        yield from reading_scores(reading, seed=seed, n_shuffles=n_shuffles)


def cross_agreement(
    changes: Float[np.ndarray, "site attribute"], causal: Float[np.ndarray, "other attribute"]
) -> Float[np.ndarray, "site other"]:
    """Return Spearman's correlation across attributes of every row with every row; nan where one is constant."""
    return _unit_ranks(changes) @ _unit_ranks(causal).T


def _unit_ranks(rows: Float[np.ndarray, "site attribute"]) -> Float[np.ndarray, "site attribute"]:
    ranks = stats.rankdata(rows, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    flat = np.ptp(rows, axis=1) <= _FLAT * np.abs(rows).max(1, initial=1e-300)
    ranks[flat] = np.nan
    return ranks / np.linalg.norm(ranks, axis=1, keepdims=True)


def _cross(
    changes: Changes, causal: Changes, bases: Int[np.ndarray, " row"] | None = None
) -> Float[np.ndarray, "site other"] | None:
    found, true = changes.shares(bases), causal.shares(bases)
    return None if found is None or true is None else cross_agreement(found, true)


def _matched(cross: Float[np.ndarray, "site other"] | None) -> float | None:
    """Return the mean over sites of the agreement with their own effects."""
    return None if cross is None else finite_mean(np.diagonal(cross))


def _excess(cross: Float[np.ndarray, "site other"] | None) -> float | None:
    """Return how much more a site agrees with its own effects than with another site's."""
    if cross is None or len(cross) < 2:
        return None
    own, other = finite_mean(np.diagonal(cross)), finite_mean(cross[~np.eye(len(cross), dtype=bool)])
    return None if own is None or other is None else own - other


def _interval(changes: Changes, causal: Changes, of: _Statistic) -> Estimate:
    most = 1.0 if of is _matched else 2.0  # of a correlation, of a difference of two
    return jackknife(lambda bases: of(_cross(changes, causal, bases)), len(changes.sums), most=most)


def _placebo(reading: Reading, sites: list[int], causal: Changes, of: _Statistic) -> dict[str, Null]:
    drawn = {"random": reading.placebos, **reading.stand_ins} if reading.placebos else {}
    return {
        NULLS.get(kind, kind): Null.of([of(_cross(one.take(sites), causal)) for one in found])
        for kind, found in drawn.items()
    }


def _shuffled(cross: Float[np.ndarray, "site other"] | None, n: int, seed: int) -> Sequence[float | None]:
    if cross is None or len(cross) < 2:
        return []
    orders = (derangement(len(cross), seed=seed + draw).numpy() for draw in range(n))
    return [finite_mean(cross[order, np.arange(len(cross))]) for order in orders]


def _bases(changes: Changes, start: int) -> Changes:
    rows = slice(start, len(changes.sums) // 2 * 2, 2)
    return Changes(sums=changes.sums[rows], counts=changes.counts[rows], full=changes.full)


_MEASURES: dict[str, _Statistic] = {"agreement": _matched, "excess over shuffled sites": _excess}
