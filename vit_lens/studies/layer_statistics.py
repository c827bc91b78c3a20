"""Where along the layers something appears: statistics of curves of accuracy."""

__all__ = ["NO_RISE", "earlier_right", "excess", "first_right", "half_rise", "stays_right"]

import numpy as np
from jaxtyping import Float

from vit_lens.studies.statistics import finite_mean

LEAST_RISE = 0.1
"""The rise of a curve below which it has no half."""
NO_RISE = f"the last layer is less than {LEAST_RISE} above chance"
"""Why a half-rise is undefined."""


def excess(
    right: Float[np.ndarray, "*rows site"], chance: Float[np.ndarray, "*rows site"]
) -> Float[np.ndarray, " site"]:
    """Return accuracy above the rate at which the part of another prompt is right at the same layer."""
    rows = tuple(range(right.ndim - 1))
    return right.mean(rows) - chance.mean(rows)


def half_rise(curve: Float[np.ndarray, " site"]) -> float | None:
    """Return the layer at which a curve first has half of its last value, between two layers by a straight line.

    Args:
        curve: Accuracy less chance at every layer, the embeddings first, the layer that is read last.

    Returns:
        0 where it has it at once; None where the last value is below :data:`LEAST_RISE`.

    >>> from vit_lens.studies.layer_statistics import half_rise
    >>> import numpy as np
    >>> half_rise(np.array([0.0, 0.2, 0.6, 0.8])), half_rise(np.array([0.0, 0.05]))
    (1.5, None)
    """
    last = float(curve[-1])
    if not np.isfinite(curve).all() or last < LEAST_RISE:
        return None
    shares = curve / last
    above = np.flatnonzero(shares >= 0.5)
    first = int(above[0])
    if first == 0:
        return 0.0
    before = float(shares[first - 1])
    return first - 1 + (0.5 - before) / (float(shares[first]) - before)


def first_right(right: Float[np.ndarray, "row site"]) -> float | None:
    """Return the first layer that is right, the mean over rows that are right at the end; None without any."""
    done = right[right[:, -1] >= 0.5] >= 0.5
    return finite_mean(done.argmax(1).astype(float)) if len(done) else None


def stays_right(right: Float[np.ndarray, "row site"]) -> float | None:
    """Return the layer from which on it stays right, the mean over rows that are right at the end."""
    done = right[right[:, -1] >= 0.5] >= 0.5
    if not len(done):
        return None
    since = done.shape[1] - np.argmin(done[:, ::-1], axis=1)
    since[done.all(1)] = 0
    return finite_mean(since.astype(float))


def earlier_right(right: Float[np.ndarray, "row site"]) -> float | None:
    """Return the share of rows that are right at an earlier layer, among those that are wrong at the end."""
    wrong = right[right[:, -1] < 0.5] >= 0.5
    return float(wrong[:, :-1].any(1).mean()) if len(wrong) else None
