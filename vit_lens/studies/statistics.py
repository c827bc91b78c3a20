"""The few statistics that studies rest on; what is not defined is None with a reason, never nan."""

__all__ = [
    "MIN_FOR_INTERVAL",
    "Estimate",
    "across_encoders",
    "across_units",
    "auc",
    "between_encoders",
    "bootstrap",
    "finite",
    "finite_mean",
    "jackknife",
    "mean_interval",
    "partial_spearman",
    "spearman",
    "within_rows",
]

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from vit_lens.estimates import LEVEL, MIN_FOR_INTERVAL, Estimate, bootstrap, mean_interval

_FLAT = 1e-12  # a spread below this share of the values is rounding


def spearman(a: Float[np.ndarray, " site"], b: Float[np.ndarray, " site"]) -> float | None:
    """Return Spearman's correlation; None for fewer than three values, constant ones or ones that are not finite.

    Args:
        a: Values.
        b: As many others.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 9.0]))
    1.0
    """
    if len(a) < 3 or _is_constant(a) or _is_constant(b):
        return None
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])


def partial_spearman(
    a: Float[np.ndarray, " site"], b: Float[np.ndarray, " site"], given: Sequence[Float[np.ndarray, " site"]]
) -> float | None:
    """Return the correlation of the ranks of ``a`` and ``b`` after those of ``given`` are regressed out of both.

    None where a rank is constant or ``given`` explains one of them whole.
    """
    if len(a) < len(given) + 3 or any(_is_constant(x) for x in (a, b, *given)):
        return None
    ranks = [stats.rankdata(x) for x in (a, b, *given)]
    design = np.stack([np.ones(len(a)), *ranks[2:]], axis=1)
    left = [rank - design @ np.linalg.lstsq(design, rank, rcond=None)[0] for rank in ranks[:2]]
    if any(np.linalg.norm(x) < 1e-9 * np.linalg.norm(rank) for x, rank in zip(left, ranks[:2], strict=True)):
        return None
    return float(np.corrcoef(left[0], left[1])[0, 1])


def within_rows(
    a: Float[np.ndarray, "site attribute"], b: Float[np.ndarray, "site attribute"]
) -> Float[np.ndarray, " site"]:
    """Return each site's Spearman correlation across attributes; nan where it is undefined, for the caller to count."""
    found = [spearman(x, y) for x, y in zip(a, b, strict=True)]
    return np.array(found, dtype=np.float64)  # None becomes nan


def auc(scores: Float[np.ndarray, " site"], positive: Bool[np.ndarray, " site"]) -> float | None:
    """Return the chance that a positive site scores above a negative one (ties count half); None without both.

    Args:
        scores: Of every site.
        positive: Which sites are positive.

    >>> auc(np.array([0.1, 0.2, 0.9]), np.array([False, False, True]))
    1.0
    """
    if not positive.any() or positive.all() or not np.isfinite(scores).all():
        return None
    ranks = stats.rankdata(scores)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def finite(value: float | int | np.floating) -> float | None:
    """Return a number for a table; None if it is nan or infinite."""
    return float(value) if math.isfinite(value) else None


def finite_mean(values: Float[np.ndarray, "*axes"] | Sequence[float | None]) -> float | None:
    """Return the mean of what is neither None, nan nor infinite; None without any."""
    found = np.asarray(values, dtype=np.float64)
    known = found[np.isfinite(found)]
    return float(known.mean()) if known.size else None


def jackknife(
    of: Callable[[Int[np.ndarray, " row"]], float | None],
    n: int,
    *,
    most: float | int,
    why: str = "constant or missing values",
) -> Estimate:
    """Return a statistic of ``n`` units with its jackknife interval.

    Resampled with replacement, few units would count as fewer: noise of a mean over units lowers every rank
    correlation, so that bootstrap intervals lie below the value itself.

    Args:
        of: The statistic of some of the units, by their numbers; None where it is undefined.
        n: How many there are.
        most: The largest magnitude that it can have.
        why: What it means that it is undefined of all units.
    """
    every = np.arange(n)
    value = of(every)
    if value is None:
        return Estimate(None, why=why)
    if n < MIN_FOR_INTERVAL:
        return Estimate(value, why=f"{n} units give no interval; {MIN_FOR_INTERVAL} do")
    rest = [of(np.delete(every, unit)) for unit in range(n)]
    known = np.array([x for x in rest if x is not None])
    if len(known) < n:
        return Estimate(value, why=f"undefined without {n - len(known)} of {n} units")
    error = math.sqrt((n - 1) / n * float(((known - known.mean()) ** 2).sum()))
    reach = float(stats.t.ppf(0.975, n - 1)) * error
    return Estimate(value, max(-most, value - reach), min(most, value + reach))


def across_encoders(values: Sequence[float], *, level: float = LEVEL) -> Estimate:
    """Return the mean over encoders and its interval by Student's t, 95% by default: the encoder is the unit."""
    return across_units(values, "encoder", level=level)


def across_units(values: Sequence[float | None], unit: str, *, level: float = LEVEL) -> Estimate:
    """Return the mean over few units and its interval by Student's t, which a bootstrap of few would make too narrow.

    Args:
        values: Of every unit; None where it is undefined.
        unit: What one is called.
        level: Of the interval.

    >>> str(across_units([0.4, 0.5, 0.6], "plant"))
    '+0.50 [+0.25, +0.75]'
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return Estimate(None, why=f"undefined for every {unit}")
    mean = float(np.mean(known))
    if len(known) < 2:
        return Estimate(mean, why=f"one {unit} gives no interval")
    reach = float(stats.t.ppf((1 + level) / 2, len(known) - 1) * np.std(known, ddof=1) / math.sqrt(len(known)))
    return Estimate(mean, mean - reach, mean + reach)


def between_encoders(first: Sequence[float], second: Sequence[float], *, level: float = LEVEL) -> Estimate:
    """Return the second mean minus the first, of different encoders, with Welch's interval by Student's t."""
    samples = [np.array([x for x in some if math.isfinite(x)]) for some in (first, second)]
    if not all(len(some) for some in samples):
        return Estimate(None, why="undefined for every encoder of a kind")
    difference = float(samples[1].mean() - samples[0].mean())
    if min(map(len, samples)) < 2:
        return Estimate(difference, why="one encoder of a kind gives no interval")
    errors = [some.var(ddof=1) / len(some) for some in samples]
    if not (error := sum(errors)):
        return Estimate(difference, difference, difference)
    freedom = error**2 / sum(one**2 / (len(some) - 1) for one, some in zip(errors, samples, strict=True))
    reach = float(stats.t.ppf((1 + level) / 2, freedom) * math.sqrt(error))
    return Estimate(difference, difference - reach, difference + reach)


def _is_constant(x: Float[np.ndarray, " site"]) -> bool:
    if not np.isfinite(x).all():
        return True
    return bool(np.ptp(x) <= _FLAT * max(1e-300, float(np.abs(x).max())))
