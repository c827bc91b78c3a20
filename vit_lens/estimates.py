"""Numbers with their intervals: the bootstrap over images that studies and records rest on."""

__all__ = ["LEVEL", "MIN_FOR_INTERVAL", "Estimate", "bootstrap", "leak_estimate", "leak_of_draws", "mean_interval"]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

LEVEL = 0.95
"""Of intervals."""
MIN_FOR_INTERVAL = 5
"""Fewer images (or pairs) than this give a value without an interval."""
NOT_APPLICABLE = "not applicable"
_DRAWS = 1000


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval; ``why`` says what is missing where something is None.

    >>> str(Estimate(0.5, 0.25, 0.75)), str(Estimate(None, why="no image"))
    ('+0.50 [+0.25, +0.75]', 'undefined (no image)')
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    why: str | None = None

    def __str__(self) -> str:
        if self.value is None:
            return f"undefined ({self.why})"
        if self.low is None or self.high is None:
            return f"{self.value:+.2f}"
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def bootstrap(
    statistic: Callable[[Int[np.ndarray, " image"]], float | None], n: int, *, seed: int, n_draws: int = _DRAWS
) -> Estimate:
    """Return a statistic of all images and its percentile interval over images drawn with replacement.

    Args:
        statistic: Of the indices of images; None where it is undefined.
        n: Images.
        seed: Of the draws.
        n_draws: Their number.

    >>> values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    >>> str(bootstrap(lambda rows: float(values[rows].mean()), len(values), seed=0))
    '+3.50 [+2.17, +4.67]'
    """
    value = statistic(np.arange(n))
    if value is None:
        return Estimate(None, why="constant or missing scores")
    if n < MIN_FOR_INTERVAL:
        return Estimate(value, why=f"n = {n} gives no interval; {MIN_FOR_INTERVAL} would")
    generator = np.random.default_rng(seed)
    drawn = [statistic(generator.integers(n, size=n)) for _ in range(n_draws)]
    known = [x for x in drawn if x is not None]
    if len(known) < 0.9 * n_draws:
        return Estimate(value, why=f"undefined in {n_draws - len(known)} of {n_draws} resamples")
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def mean_interval(values: Float[np.ndarray, " image"], *, seed: int) -> Estimate:
    """Return the mean of the finite values and its bootstrap interval.

    >>> str(mean_interval(np.array([1.0, 2.0, np.nan]), seed=0))
    '+1.50'
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return Estimate(None, why="no defined value")
    return bootstrap(lambda rows: float(known[rows].mean()), len(known), seed=seed)


def leak_estimate(control: Float[np.ndarray, " image"], site: Float[np.ndarray, " image"], *, seed: int) -> Estimate:
    """Return the leak index of a site over images: the mean S of its control over its own, with an interval.

    S is the centred similarity to the input. Both means are over the same images, drawn with replacement together.
    Where the interval of the denominator includes 0 the index is not applicable, and so it is where there are too few
    images for an interval: it would be any number, and a large one by chance.

    Args:
        control: S of a control, over its draws, for each image.
        site: S of the site.
        seed: Of the resamples.

    >>> site = np.array([0.5, 0.4, 0.6, 0.5, 0.45, 0.55])
    >>> str(leak_estimate(site / 5, site, seed=0))
    '+0.20 [+0.20, +0.20]'
    >>> str(leak_estimate(site, site - 0.5, seed=0))
    'undefined (not applicable: S(site) is +0.00 [-0.06, +0.06], which includes 0)'
    """
    known = np.isfinite(control) & np.isfinite(site)
    control, site = control[known], site[known]
    below = mean_interval(site, seed=seed)
    if below.value is None or below.low is None:
        return Estimate(None, why=f"{NOT_APPLICABLE}: {below.why or 'S(site) is undefined'}")
    if below.low <= 0:
        words = "includes 0" if below.high is not None and below.high >= 0 else "lies below 0"
        return Estimate(None, why=f"{NOT_APPLICABLE}: S(site) is {below}, which {words}")

    def ratio(rows: Int[np.ndarray, " image"]) -> float | None:
        under = float(site[rows].mean())
        return None if under <= 0 else float(control[rows].mean()) / under

    return bootstrap(ratio, len(site), seed=seed)


def leak_of_draws(control: Sequence[float], site: float, *, least: float, seed: int = 0) -> Estimate:
    """Return the leak index of one site of one image, with an interval over the draws of its control.

    It does not apply where S of the site is no more than chance gives it, so that it is never a large number for want
    of a denominator. The interval says how well the draws are known, and nothing of other images.

    Args:
        control: S of the control, for each draw.
        site: S of the site; nan where it is not known.
        least: What chance gives, above which S of the site counts.
        seed: Of the resamples of draws.

    >>> str(leak_of_draws([0.1, 0.2, 0.1, 0.2, 0.15], 0.5, least=0.2))
    '+0.30 [+0.22, +0.38]'
    >>> leak_of_draws([0.1, 0.2], 0.1, least=0.2).why
    'not applicable: S(site) is +0.10, and chance gives +0.20'
    """
    draws = np.asarray(control, dtype=np.float64)
    if not math.isfinite(site) or not np.isfinite(draws).all() or not len(draws):
        return Estimate(None, why="S is not known")
    if site <= least:
        return Estimate(None, why=f"{NOT_APPLICABLE}: S(site) is {site:+.2f}, and chance gives {least:+.2f}")
    value = float(draws.mean()) / site
    if len(draws) < MIN_FOR_INTERVAL:
        return Estimate(value, why=f"{len(draws)} draws give no interval; {MIN_FOR_INTERVAL} do")
    rows = np.random.default_rng(seed).integers(len(draws), size=(_DRAWS, len(draws)))
    low, high = np.quantile(draws[rows].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) / site
    return Estimate(value, float(low), float(high))
