"""Which units can be explained, and which images are shown of each: the two protocols' rules."""

__all__ = ["N_NEGATIVES", "N_POSITIVES", "Halves", "explaining_images", "negatives", "positives", "why_not"]

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

N_STRONGEST, N_POSITIVES, N_NEGATIVES = 3, 10, 10
_LOWER = (0.5, 0.75)  # the ranks, as shares of the images on which a unit fires, that explain beside the strongest

Strengths = Float[np.ndarray, " image"]


class Halves(NamedTuple):
    """The images that explain, and those that test; none is both.

    >>> Halves.of(5, seed=0)
    Halves(explain=[1, 4], test=[0, 2, 3])
    """

    explain: list[int]
    test: list[int]

    @classmethod
    def of(cls, n: int, *, seed: int) -> "Halves":
        """Return two halves of ``n`` images, drawn at random."""
        order = np.random.default_rng([seed, 1]).permutation(n).tolist()
        return cls(sorted(order[: n // 2]), sorted(order[n // 2 :]))


def ranked(strength: Strengths, images: list[int]) -> list[int]:
    """Return the images on which a unit fires, strongest first; equal ones in their order."""
    own = strength[images]
    order = np.argsort(-own, kind="stable")[: int((own > 0).sum())]
    return np.asarray(images)[order].tolist()


def why_not(strength: Strengths, halves: Halves, least: int) -> str | None:
    """Return why a unit cannot be explained and tested; None where it can."""
    explain, test = (int((strength[half] > 0).sum()) for half in halves)
    if explain + test == 0:
        return "never fires"
    if min(explain, test) < least:
        return f"fires on {explain} images that explain and {test} that test; {least} of each are needed"
    if len(halves.test) - test < N_NEGATIVES:
        return f"is silent on {len(halves.test) - test} images that test; {N_NEGATIVES} are needed"
    return None


def explaining_images(strength: Strengths, halves: Halves) -> list[int]:
    """Return five images: three of the strongest, and the first behind half and behind three quarters of the ranks."""
    order = ranked(strength, halves.explain)
    return [*order[:N_STRONGEST], *(order[math.ceil(share * len(order))] for share in _LOWER)]


def positives(strength: Strengths, halves: Halves) -> list[int]:
    """Return ten images on which a unit fires, evenly spread over the ranks: the middle of every tenth."""
    order = ranked(strength, halves.test)
    return [order[int((k + 0.5) * len(order) / N_POSITIVES)] for k in range(N_POSITIVES)]


def negatives(
    unit: int, strengths: Float[np.ndarray, "image unit"], halves: Halves, neighbours: list[int],
    generator: np.random.Generator,
) -> list[int]:  # fmt: skip
    """Return ten images on which a unit is silent: the strongest of its nearest rows, one of each, and random ones.

    Args:
        unit: The unit.
        strengths: How much every unit fires on every image.
        halves: The halves; those that test are taken.
        neighbours: The other units, that with the nearest row first.
        generator: The source of random numbers.
    """
    silent = [image for image in halves.test if strengths[image, unit] == 0]
    near: list[int] = []
    for other in neighbours:
        if len(near) == N_NEGATIVES // 2:
            break
        own = strengths[silent, other]
        best = next((silent[k] for k in np.argsort(-own, kind="stable") if own[k] > 0 and silent[k] not in near), None)
        near += [] if best is None else [best]
    rest = [image for image in silent if image not in near]
    return [*near, *generator.choice(rest, N_NEGATIVES - len(near), replace=False).tolist()]
