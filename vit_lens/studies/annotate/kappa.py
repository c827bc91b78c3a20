"""Fleiss' kappa where items have different numbers of ratings."""

__all__ = ["fleiss_kappa", "raw_agreement"]

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int

from vit_lens.estimates import Estimate, bootstrap

_FEW = "fewer than two ratings of every item; kappa needs two raters"


def fleiss_kappa(
    counts: Int[np.ndarray, "item category"], *, seed: int = 0, groups: Sequence[Hashable] | None = None
) -> Estimate:
    r"""Return Fleiss' kappa and its percentile interval over items, or groups of items, drawn with replacement.

    Fleiss 1971, ``(P - P_e) / (1 - P_e)``. ``P`` is the chance that two different ratings of an item are equal, mean
    over items; ``P_e`` that two ratings are that are drawn each of an item of its own: the sum of squares of the shares
    of categories, an item's shares meaned over items. With as many ratings of every item this is the formula of 1971;
    with unequal numbers every item counts once (Gwet 2014, chapter 2). Items with fewer than two ratings are left out.

    Args:
        counts: How many ratings of an item fall into a category.
        seed: Of the draws of items.
        groups: The group of each item, such as its prompt, where those of one group depend on each other: groups are
            drawn then, each with all its items. None where every item stands for itself.

    Returns:
        The estimate; undefined, with a reason, where no item has two ratings, or all ratings are the same.

    >>> import numpy as np
    >>> from vit_lens.studies.annotate.kappa import fleiss_kappa
    >>> round(fleiss_kappa(np.array([[3, 0], [0, 3], [2, 1], [3, 0], [1, 2], [0, 2]])).value, 3)
    0.556
    """
    agreed, shares = _by_item(counts)
    if not len(agreed):
        return Estimate(None, why=_FEW)
    if (shares.mean(axis=0) == 1).any():
        return Estimate(None, why="all ratings are the same, which chance would give as well")

    def kappa(items: Int[np.ndarray, " item"]) -> float | None:
        by_chance = float((shares[items].mean(axis=0) ** 2).sum())
        return None if by_chance > 1 - 1e-12 else (float(agreed[items].mean()) - by_chance) / (1 - by_chance)

    rated = np.flatnonzero(counts.sum(axis=1) >= 2)
    own = rated.tolist() if groups is None else [groups[int(item)] for item in rated]
    members = [np.flatnonzero([one == group for one in own]) for group in dict.fromkeys(own)]
    return bootstrap(lambda drawn: kappa(np.concatenate([members[k] for k in drawn])), len(members), seed=seed)


def raw_agreement(counts: Int[np.ndarray, "item category"]) -> tuple[float | None, int]:
    """Return the chance that two different ratings of an item are equal, and of how many items that is the mean."""
    agreed, _ = _by_item(counts)
    return (float(agreed.mean()) if len(agreed) else None), len(agreed)


def _by_item(
    counts: Int[np.ndarray, "item category"],
) -> tuple[Float[np.ndarray, " rated"], Float[np.ndarray, "rated category"]]:
    rated = counts[counts.sum(axis=1) >= 2].astype(np.float64)
    n = rated.sum(axis=1)
    return (rated * (rated - 1)).sum(axis=1) / (n * (n - 1)), rated / n[:, None]
