"""Rank correlations over heads of means over images, for many draws at once."""

__all__ = ["correlate", "estimate", "halves", "image_weights", "shuffled"]

import numpy as np
from jaxtyping import Float
from scipy import stats

from vit_lens.studies.statistics import MIN_FOR_INTERVAL, Estimate

_FLAT = 1e-12  # as in vit_lens.studies.statistics: a spread below this share of the values is rounding
_GONE = 1e-9  # what is left of ranks that others explain whole
_MANY = 1000
_ENOUGH = 0.9


def image_weights(n: int, *, seed: int, n_draws: int = _MANY) -> Float[np.ndarray, "draw image"]:
    """Return what each image counts: all alike in row 0, in every other row as often as it was drawn.

    ``weights @ values`` are the means over images, and over images drawn with replacement.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.integers(n, size=(n_draws, n))
    counts = np.stack([np.bincount(row, minlength=n) for row in drawn])
    return np.concatenate([np.ones((1, n)), counts]) / n


def correlate(
    a: Float[np.ndarray, "#draw head"],
    b: Float[np.ndarray, "#draw head"],
    given: tuple[Float[np.ndarray, "#draw head"], ...] = (),
) -> Float[np.ndarray, " draw"]:
    """Return Spearman's correlation over heads of each draw, partial where something is ``given``.

    One draw goes with all of the others. It is that of ``statistics.spearman`` and ``statistics.partial_spearman``,
    nan where those are None, for the caller to count.
    """
    parts = np.broadcast_arrays(a, b, *given)
    if parts[0].shape[1] < len(given) + 3:
        return np.full(len(parts[0]), np.nan)
    undefined = np.any([_constant(part) for part in parts], axis=0)
    ranks = [stats.rankdata(part, axis=1) for part in parts]
    ranks = [rank - rank.mean(1, keepdims=True) for rank in ranks]
    left = ranks[:2]
    if given:
        design = np.stack(ranks[2:], axis=2)
        inverse = np.linalg.pinv(design)
        left = [rank - (design @ (inverse @ rank[..., None]))[..., 0] for rank in left]
    sizes = [np.linalg.norm(part, axis=1) for part in left]
    for size, rank in zip(sizes, ranks, strict=False):
        undefined |= size <= _GONE * np.linalg.norm(rank, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (left[0] * left[1]).sum(1) / (sizes[0] * sizes[1])
    return np.where(undefined, np.nan, found)


def estimate(values: Float[np.ndarray, " draw"], n: int, *, undefined: str) -> Estimate:
    """Return the value (row 0 of :func:`image_weights`) and the 95% percentile interval of the other draws.

    Args:
        values: Of :func:`correlate`.
        n: Images.
        undefined: Why the value is None where it is.
    """
    value, drawn = values[0], values[1:]
    if not np.isfinite(value):
        return Estimate(None, why=undefined)
    if n < MIN_FOR_INTERVAL:
        return Estimate(float(value), why=f"{n} images give no interval; {MIN_FOR_INTERVAL} do")
    known = drawn[np.isfinite(drawn)]
    if len(known) < _ENOUGH * len(drawn):
        return Estimate(float(value), why=f"undefined in {len(drawn) - len(known)} of {len(drawn)} resamples")
    low, high = np.quantile(known, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


def shuffled(x: Float[np.ndarray, " head"], *, seed: int, n_draws: int = 200) -> Float[np.ndarray, "draw head"]:
    """Return the values with the heads in random orders."""
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(x) for _ in range(n_draws)])


def halves(
    values: Float[np.ndarray, "image head"], *, seed: int, n_draws: int = 100
) -> tuple[Float[np.ndarray, "draw head"], Float[np.ndarray, "draw head"]]:
    """Return the means over one random half of the images, and over the other."""
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(len(values)) for _ in range(n_draws)]
    half = len(values) // 2
    return tuple(
        np.stack([values[order[part]].mean(0) for order in orders]) for part in (slice(half), slice(half, None))
    )  # pyright: ignore[reportReturnType]


def _constant(x: Float[np.ndarray, "draw head"]) -> np.ndarray:
    finite = np.isfinite(x).all(1)
    flat = np.ptp(x, axis=1) <= _FLAT * np.maximum(1e-300, np.abs(x).max(1))
    return ~finite | flat
