"""From which layer on a picture is right: two statistics that differ, with intervals over prompts."""

__all__ = ["Emergence", "emergence"]

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from vit_lens.estimates import Estimate, bootstrap


@dataclass(frozen=True, kw_only=True)
class Emergence:
    """Where pictures that are right at the last layer became so, over prompts and seeds.

    Attributes:
        first: The first layer that is judged right, mean.
        stays: The layer from which on every judged layer is right, mean.
        equal: The share where both are one layer.
        n: How many prompts with seeds are right at the last layer.
        lost: How many are wrong at the last layer, and right at an earlier one.
        wrong: How many are wrong at the last layer.
    """

    first: Estimate
    stays: Estimate
    equal: Estimate
    n: int
    lost: int
    wrong: int


def emergence(cells: pd.DataFrame, *, seed: int = 0) -> Emergence:
    """Return where pictures become right.

    What is not judged at the last layer is left out, and so is an earlier layer that is not judged. The 95 % intervals
    are over prompts drawn with replacement, each with all its seeds.

    Args:
        cells: Rows with ``prompt``, ``seed``, ``layer`` and ``value``, 1 where the picture is right.
        seed: Of the draws.

    >>> import pandas as pd
    >>> from vit_lens.studies.annotate.emerging import emergence
    >>> cells = pd.DataFrame({"prompt": "a can", "seed": 0, "layer": [3, 7, 11, 15], "value": [1, 0, 1, 1]})
    >>> found = emergence(cells)
    >>> found.first.value, found.stays.value, found.equal.value, found.n
    (3.0, 11.0, 0.0, 1)
    """
    last = cells["layer"].max()
    prompts: list[str] = []
    firsts: list[int] = []
    stays: list[int] = []
    lost = wrong = 0
    drawn: Any = cells.sort_values("layer").groupby(["prompt", "seed"], sort=True)
    for (prompt, _), row in drawn:
        layers, right = row["layer"].to_numpy(), row["value"].to_numpy() == 1
        if layers[-1] != last:
            continue
        if not right[-1]:
            wrong, lost = wrong + 1, lost + bool(right.any())
            continue
        gaps = np.flatnonzero(~right)
        prompts.append(prompt)
        firsts.append(layers[right.argmax()])
        stays.append(layers[gaps[-1] + 1 if len(gaps) else 0])
    first, stay = np.array(firsts, dtype=np.float64), np.array(stays, dtype=np.float64)
    numbers = {"first": first, "stays": stay, "equal": (first == stay).astype(np.float64)}
    groups = pd.factorize(np.array(prompts, dtype=object))[0]
    return Emergence(
        **{name: _over(values, groups, seed) for name, values in numbers.items()}, n=len(first), lost=lost, wrong=wrong
    )


def _over(values: Float[np.ndarray, " row"], groups: Int[np.ndarray, " row"], seed: int) -> Estimate:
    if not len(values):
        return Estimate(None, why="nothing is right at the last layer")
    sums, counts = np.bincount(groups, weights=values), np.bincount(groups).astype(np.float64)
    return bootstrap(lambda some: float(sums[some].sum() / counts[some].sum()), len(sums), seed=seed)
