"""What the bench measures of a candidate: one number for each plant, less its placebo, with an interval over plants."""

__all__ = ["CHANCE", "Measured", "as_json", "auc_at", "measured", "rank_correlation"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from vit_lens.estimates import Estimate
from vit_lens.studies import across_units, auc, spearman

_ROUNDING = 1e-3  # scores are shares of a whole difference: what differs by less is the same
CHANCE = 0.5
"""Of an area under the curve."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measure of one candidate.

    Attributes:
        task: The task, by its name.
        measure: What was measured, in a word or two; docs/benchmark.md explains each.
        estimate: The mean over plants of the number less ``less``, with a 95% interval over plants.
        raw: The mean of the number itself; None where it is undefined.
        placebo: The mean of its placebo; None for a measure that has none.
        less: What is taken off, in the mean: the placebo, or chance where the placebo is below.
        values: The number less that, plant by plant; None where it is undefined.

    >>> from vit_lens.estimates import Estimate
    >>> found = Measured(
    ...     task="heads", measure="planted", estimate=Estimate(0.5), raw=1.0, placebo=0.4, less=0.5,
    ...     values=(0.4, 0.6, None),
    ... )
    >>> found.n, str(found.estimate)
    (2, '+0.50')
    """

    task: str
    measure: str
    estimate: Estimate
    raw: float | None
    placebo: float | None
    less: float
    values: tuple[float | None, ...]

    @property
    def n(self) -> int:
        """Of how many plants it is the mean."""
        return sum(value is not None for value in self.values)


def measured(
    task: str,
    measure: str,
    found: Sequence[float | None],
    placebo: Sequence[float | None] | None = None,
    *,
    chance: float | None = None,
) -> Measured:
    """Return a measure of the numbers of every plant.

    Args:
        task: The task.
        measure: Its measure.
        found: The number of every plant; None where it is undefined.
        placebo: What it would be if the candidate had nothing to say; None for a measure that has no placebo.
        chance: What nothing comes to: it is taken off where the placebos are below it in the mean, since being worse
            than chance earns nothing. Else each plant's own placebo is.
    """
    told = None if placebo is None else _mean(placebo)
    if chance is not None and (told is None or told <= chance):
        less: list[float | None] = [chance] * len(found)
    else:
        less = [0.0] * len(found) if placebo is None else list(placebo)
    values = [None if x is None or y is None else x - y for x, y in zip(found, less, strict=True)]
    return Measured(
        task=task, measure=measure, estimate=across_units(values, "plant"), raw=_mean(found), placebo=told,
        less=_mean(less) or 0.0, values=tuple(values),
    )  # fmt: skip


def auc_at(
    scores: Float[np.ndarray, "*draw site"], positive: Bool[np.ndarray, " site"], among: Bool[np.ndarray, " site"]
) -> float | None:
    """Return the chance that a positive site scores above another one, averaged over draws; None where undefined.

    Args:
        scores: Of every site, as shares of a whole difference; those that differ by less than .001 are ties.
        positive: Which sites are positive.
        among: Which sites are looked at.
    """
    even = np.round(np.atleast_2d(scores) / _ROUNDING)
    return _mean([auc(row[among], positive[among]) for row in even])


def rank_correlation(scores: Float[np.ndarray, "*draw site"], effects: Float[np.ndarray, " site"]) -> float | None:
    """Return Spearman's correlation of scores with effects, averaged over draws; 0 for scores that are all alike."""
    return _mean([spearman(row, effects) or 0.0 for row in np.atleast_2d(scores)])


def as_json(found: Measured) -> Mapping[str, object]:
    """Return plain values."""
    estimate = found.estimate
    return {
        "task": found.task, "measure": found.measure, "value": estimate.value, "low": estimate.low,
        "high": estimate.high, "n": found.n, "unit": "plants", "raw": found.raw, "placebo": found.placebo,
        "less": found.less, "why": estimate.why, "values": list(found.values),
    }  # fmt: skip


def _mean(values: Sequence[float | None]) -> float | None:
    known = [x for x in values if x is not None]
    return float(np.mean(known)) if known else None
