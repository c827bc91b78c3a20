"""Scores of orders in which heads are taken away: between random orders and the greedy one, nulls beside them."""

__all__ = ["AREA", "CIRCULAR", "LEFT_AFTER", "Trial", "area", "left_after", "scaled"]

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vit_lens.studies.findings import Null, Score
from vit_lens.studies.overlay.orders import Ranking
from vit_lens.studies.overlay.removal import LEFT, TO_BASE, TO_OVERLAY, Order, Removal, Removed, sorted_by
from vit_lens.studies.stand_ins import NULLS
from vit_lens.studies.statistics import Estimate, bootstrap

AREA = "overlay removal: area of T (random 0, greedy 1)"
LEFT_AFTER = 4
CIRCULAR = "; pictures read by the encoder itself (circular)"

RANDOM, GREEDY = "random", "greedy (upper bound)"
_PLACEBO, _OTHER = NULLS["random"], "order of another overlay"

Rows = Int[np.ndarray, " draw"]


class Trial:
    """Orders, measured on the base images beside random ones and the greedy one.

    Args:
        removal: Takes heads away from the base images.
        greedy: The greedy order.
        randoms: Random orders.
        steps: Numbers of heads that are gone when it is measured.
        seed: Of resamples.
    """

    def __init__(self, removal: Removal, greedy: Order, randoms: Sequence[Order], *, steps: Sequence[int], seed: int):
        self.removal, self.greedy, self.steps, self.seed = removal, greedy, list(steps), seed
        self._greedy, *self._randoms = removal.run([greedy, *randoms], steps, label="greedy and random orders")
        self._floor = np.mean([area(one, steps) for one in self._randoms], axis=0)
        self._ceiling = area(self._greedy, steps)
        self.trajectories = [
            *self._trajectory(GREEDY, "embedding", False, [self._greedy]),
            *self._trajectory(RANDOM, "embedding", False, self._randoms),
        ]

    def scores(self, ranking: Ranking) -> list[Score]:
        """Take heads away in the ranking's order, and score it."""
        order = sorted_by(ranking.scores)
        nulls = {_PLACEBO: ranking.placebos} | {NULLS.get(k, k): found for k, found in ranking.stand_ins.items()}
        drawn = [sorted_by(scores) for found in nulls.values() for scores in found]
        own, other, *rest = self.removal.run([order, np.roll(order, 1, axis=0), *drawn], self.steps, label=ranking.name)
        left = iter(rest)
        removed = {name: list(itertools.islice(left, len(found))) for name, found in nulls.items()}
        self.trajectories += self._trajectory(ranking.reading, ranking.level, ranking.circular, [own])
        measures: dict[str, Callable[[Removed, Rows], float | None]] = {AREA: self._share}
        if LEFT_AFTER in self.steps:
            measures[left_after()] = self._left
        return [self._score(name, measure, ranking, own, other, removed) for name, measure in measures.items()]

    def _score(
        self,
        name: str,
        measure: Callable[[Removed, Rows], float | None],
        ranking: Ranking,
        own: Removed,
        other: Removed,
        removed: Mapping[str, Sequence[Removed]],
    ) -> Score:
        n = own.shape[2]
        every = np.arange(n)
        nulls = {"random order": Null.of([measure(one, every) for one in self._randoms])}
        for null, placebos in removed.items():
            if placebos:
                nulls[null] = Null.of([measure(one, every) for one in placebos])
        controls = {_OTHER: measure(other, every)} if own.shape[1] > 1 else {}
        estimate = bootstrap(lambda rows: measure(own, rows), n, seed=self.seed)
        if estimate.value is None:
            estimate = Estimate(None, why="greedy removal is no better than random orders")
        return Score(
            measure=name + CIRCULAR * ranking.circular, reading=ranking.reading, level=ranking.level,
            estimate=estimate, n=n, unit="base images", nulls=nulls, controls=controls,
        )  # fmt: skip

    def _share(self, removed: Removed, rows: Rows) -> float | None:
        return scaled(area(removed, self.steps)[:, rows], self._floor[:, rows], self._ceiling[:, rows])

    def _left(self, removed: Removed, rows: Rows) -> float | None:
        return float(removed[LEFT][:, rows, self.steps.index(LEFT_AFTER)].mean())

    def _trajectory(self, reading: str, level: str, circular: bool, found: Sequence[Removed]) -> list[dict[str, Any]]:
        """Return a row for each step; the band holds 95% of the draws, where there are several."""
        draws = np.stack([one.mean((1, 2)) for one in found])  # [draw measure step]
        t = draws[:, TO_BASE] - draws[:, TO_OVERLAY]
        low, high = np.quantile(t, [0.025, 0.975], axis=0)
        mean = draws.mean(0)
        return [
            {
                "reading": reading, "level": level, "circular": circular, "heads": step, "T": float(t[:, i].mean()),
                "T_low": float(low[i]) if len(t) > 1 else None, "T_high": float(high[i]) if len(t) > 1 else None,
                "to_base": float(mean[TO_BASE, i]), "to_overlay": float(mean[TO_OVERLAY, i]),
                "left": float(mean[LEFT, i]),
            }
            for i, step in enumerate(self.steps)
        ]  # fmt: skip


def left_after(n: int = LEFT_AFTER) -> str:
    """Return the name of the measure that says how much of the overlay is left."""
    return f"overlay left after {n} heads (all 1, none 0)"


def area(removed: Removed, steps: Sequence[int]) -> Float[np.ndarray, "overlay base"]:
    """Return the mean of T over ``log2(1 + k)``, ``k`` the number of heads that are gone.

    T is the cosine with the image without the overlay minus that with the overlay alone.
    """
    places = np.log2(1 + np.array(steps))
    return np.trapezoid(removed[TO_BASE] - removed[TO_OVERLAY], places, axis=-1) / (places[-1] - places[0])


def scaled(
    own: Float[np.ndarray, "overlay base"],
    random: Float[np.ndarray, "overlay base"],
    greedy: Float[np.ndarray, "overlay base"],
) -> float | None:
    """Return a mean area, the random orders' set to 0 and greedy's to 1; None where greedy is no better than random."""
    low, high = random.mean(), greedy.mean()
    return None if high - low <= 1e-9 else float((own.mean() - low) / (high - low))
