"""``explain``: units are explained on some images and tested on others, by one of two protocols."""

__all__ = ["PROTOCOLS", "NothingToExplain", "explain"]

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vit_lens.addresses import as_index
from vit_lens.errors import ExplanationError, nearest
from vit_lens.explaining.choosing import Halves, explaining_images, negatives, positives, ranked, why_not
from vit_lens.explaining.protocols import Explainer, FeatureJudge
from vit_lens.explaining.results import Explained, Explanations, Skipped
from vit_lens.explaining.units import Units

PROTOCOLS = ("mended", "paper")
"""``mended``: tested on images that did not explain. ``paper``: as published in arXiv 2505.24360."""
_LEAST, _PAPER = 10, 5


class NothingToExplain(ExplanationError):
    """No unit of a kind can be explained; ``skipped`` says why, unit by unit.

    >>> NothingToExplain("nothing", ()).skipped
    ()
    """

    def __init__(self, message: str, skipped: Sequence[Skipped]):
        super().__init__(message)
        self.skipped = tuple(skipped)


def explain(
    kinds: Sequence[Units], images: Sequence[Image.Image], explainer: Explainer, judge: FeatureJudge | None = None,
    *, protocol: str = "mended", features: Sequence[int] | None = None, n: int = 512, least: int = 40, seed: int = 0,
    grid: tuple[int, int] | None = None, progress: bool = False,
) -> Explanations:  # fmt: skip
    """Say what units fire on, and test it.

    One half of the images explains, the other tests. By ``mended`` a unit is explained on three of the images on which
    it fires strongest and two of its lower ranks, and tested on ten others over all ranks and ten on which it is
    silent: five of these are the strongest of units with the nearest rows, the rest random. By ``paper`` it is
    explained on its five strongest images, which are tested again beside the strongest images of five other units,
    drawn by how often these fire; the judge sees what is highlighted. A score says little by itself: hold it against
    kinds that were not learnt, and against ``shuffled``, the same with another unit's explanation.

    Args:
        kinds: The units, kind by kind, on the same images.
        images: What the tower sees of these.
        explainer: Who explains.
        judge: Who judges; None for the explainer.
        protocol: ``mended`` or ``paper``.
        features: Units of the first kind; None takes such as can be explained.
        n: How many of each kind at most, drawn at random of those that can be explained.
        least: On how many images of each half a unit has to fire.
        seed: The seed of all that is drawn.
        grid: Rows and columns of patches; None for a square.
        progress: Whether a progress bar is shown.

    Raises:
        ExplanationError: There is no such protocol or unit, too few images, no unit of the first kind that can be
            explained, or a prompt is drawn among the images that explain and among those that test.

    >>> oracle = vl.explaining.AttributeOracle.of_world(120)
    >>> source = vl.ActivationSource.of_model(model, oracle.pictures, "L5.resid_post", tokens="patches")
    >>> units = vl.explaining.Units.of_dictionary(vl.Dictionary.from_pretrained("mini-topk"), source)
    >>> explain([units], oracle.pictures, oracle, n=4, least=10)
    Explanations(4 units of dictionary; mended, oracle)
    """
    if protocol not in PROTOCOLS:
        raise ExplanationError(f"protocol={protocol!r}; nearest: {nearest(str(protocol), PROTOCOLS)}")
    for name, value, low in (("n", n, 1), ("least", least, _LEAST)):
        if (as_index(value) or 0) < low:
            raise ExplanationError(f"{name}={value!r}; expected a whole number, at least {low}")
    if not kinds:
        raise ExplanationError("no units to explain; give at least one kind")
    if wrong := [one for one in kinds if len(one.source.inputs) != len(images)]:
        raise ExplanationError(f"{wrong[0]!r}, and {len(images)} images were given; expected the same ones")
    if len({one.name for one in kinds}) < len(kinds):
        raise ExplanationError(f"kinds are called {', '.join(one.name for one in kinds)}; give each a name of its own")
    if len(images) < 2 * least:
        raise ExplanationError(
            f"{len(images)} images, and a unit has to fire on {least} of each half: give at least {2 * least}, better "
            "ten times as many, or a smaller least="
        )
    halves, judged = Halves.of(len(images), seed=seed), _as_judge(explainer, judge)
    for one in kinds:
        _refuse_repeated(one, halves)
    rows, skipped = [], []
    for place, units in enumerate(kinds):
        run = _Run(units, images, explainer, judged, halves, seed, grid, progress)
        chosen, left = run.choose(features if place == 0 else None, n, least, protocol)
        skipped += left
        if not chosen and place == 0:
            raise NothingToExplain(
                f"nothing to explain in {units!r}: {_said(left)}; give more images, or smaller least=", left
            )
        rows += run.mended(chosen) if protocol == "mended" else run.paper(chosen)
    return Explanations(
        protocol=protocol, explainer=explainer.name, judge=judged.name, n_images=len(images), least=least, seed=seed,
        rows=tuple(rows), skipped=tuple(skipped),
    )  # fmt: skip


def _refuse_repeated(units: Units, halves: Halves) -> None:
    """Refuse prompts that are drawn on both sides: noise of its own makes no other picture of a prompt."""
    if units.source.provenance.at_steps is None:
        return
    keys = [units.source.reader.keys[k] for k in units.source.inputs]
    explain, test = ({keys[k] for k in half} for half in halves)
    if both := sorted(explain & test):
        raise ExplanationError(
            f"{len(both)} prompts, such as {both[0]!r:.60}, are drawn among the images that explain and among those "
            "that test; give every prompt once"
        )


def _as_judge(explainer: Any, judge: FeatureJudge | None) -> FeatureJudge:
    found = explainer if judge is None else judge
    if not isinstance(found, FeatureJudge):
        raise ExplanationError(f"{getattr(found, 'name', found)!r} judges nothing; give a judge=")
    return found


def _said(left: Sequence[Skipped]) -> str:
    never = sum(one.why == "never fires" for one in left)
    others = [f"unit {one.unit} {one.why}" for one in left if one.why != "never fires"]
    said = (
        [f"{never} of {len(left)} never fire" if len(left) > 1 else f"unit {left[0].unit} never fires"] if never else []
    )
    return "; ".join([*said, *others[:2]])


class _Run:
    """Units of one kind on the images."""

    def __init__(
        self, units: Units, images: Sequence[Image.Image], explainer: Explainer, judge: FeatureJudge, halves: Halves,
        seed: int, grid: tuple[int, int] | None, progress: bool,
    ):  # fmt: skip
        self.units, self.images, self.explainer, self.judge = units, images, explainer, judge
        self.halves, self.seed, self.grid, self.progress = halves, seed, grid, progress
        self.strengths = units.strongest()
        self.counts = (self.strengths[halves.explain] > 0).sum(0)

    def choose(
        self, features: Sequence[int] | None, n: int, least: int, protocol: str
    ) -> tuple[list[int], list[Skipped]]:
        """Return the units that are explained, and those that cannot be."""
        name = self.units.name
        wanted = range(self.strengths.shape[1]) if features is None else [self.units.unit(one) for one in features]
        why = {unit: why_not(self.strengths[:, unit], self.halves, least) for unit in wanted}
        fit = [unit for unit, reason in why.items() if reason is None]
        left = [Skipped(kind=name, unit=unit, why=reason) for unit, reason in why.items() if reason is not None]
        if protocol == "paper" and len(self._others(-1)) <= _PAPER:
            too_few = f"has {len(self._others(-1)) - 1} units of its kind to draw negatives from; {_PAPER} are needed"
            return [], [*left, *(Skipped(kind=name, unit=unit, why=too_few) for unit in fit)]
        if features is None and len(fit) > n:
            fit = sorted(np.random.default_rng([self.seed, 2]).choice(fit, n, replace=False).tolist())
        return fit, left

    def mended(self, chosen: list[int]) -> list[Explained]:
        near = _neighbours(self.units.directions, chosen)
        shown = {unit: explaining_images(self.strengths[:, unit], self.halves) for unit in chosen}
        hits = {unit: positives(self.strengths[:, unit], self.halves) for unit in chosen}
        misses = {
            unit: negatives(
                unit, self.strengths, self.halves, near[unit], np.random.default_rng([self.seed, 3, unit])
            ) for unit in chosen
        }  # fmt: skip
        texts = self._texts(shown)
        rows, shuffled = [], self._shuffled(texts)
        for unit in self._bar(chosen):
            images = [*hits[unit], *misses[unit]]
            fires = np.arange(len(images)) < len(hits[unit])
            said = self._judged(images, texts[unit])
            strengths = self.strengths[images, unit].astype(np.float64)
            other = None if shuffled is None else balanced_accuracy(self._judged(images, shuffled[unit]), fires)
            rows.append(self._row(
                unit, texts[unit], shown[unit], hits[unit], misses[unit], score=balanced_accuracy(said, fires),
                auc=auc(strengths, said > 0.5), localisation=self._localisation(unit, hits[unit], said, texts[unit]),
                shuffled=other, constant=balanced_accuracy(np.full(len(images), 0.5), fires),
            ))  # fmt: skip
        return rows

    def paper(self, chosen: list[int]) -> list[Explained]:
        shown = {unit: ranked(self.strengths[:, unit], self.halves.explain)[:_PAPER] for unit in chosen}
        others = {unit: self._drawn(unit) for unit in chosen}
        texts = self._texts(shown)
        rows, shuffled = [], self._shuffled(texts)
        for unit in self._bar(chosen):
            seen = [*((unit, image) for image in shown[unit]), *others[unit]]
            images, maps = [image for _, image in seen], [self._map(*pair) for pair in seen]
            fits = np.arange(len(seen)) < _PAPER
            said = self._judged(images, texts[unit], maps)
            other = None if shuffled is None else agreement(self._judged(images, shuffled[unit], maps), fits)
            rows.append(self._row(
                unit, texts[unit], shown[unit], shown[unit], [image for _, image in others[unit]],
                score=agreement(said, fits), auc=None, localisation=None, shuffled=other,
                constant=agreement(np.full(len(seen), 0.5), fits),
            ))  # fmt: skip
        return rows

    def _others(self, unit: int) -> list[int]:
        """Return the other units with images enough to be shown."""
        return [one for one in np.flatnonzero(self.counts >= _PAPER).tolist() if one != unit]

    def _drawn(self, unit: int) -> list[tuple[int, int]]:
        """Return five other units, drawn by how often they fire, each with its strongest image."""
        others, generator = self._others(unit), np.random.default_rng([self.seed, 4, unit])
        chances = self.counts[others] / self.counts[others].sum()
        drawn = generator.choice(others, _PAPER, replace=False, p=chances).tolist()
        return [(one, ranked(self.strengths[:, one], self.halves.explain)[0]) for one in drawn]

    def _texts(self, shown: dict[int, list[int]]) -> dict[int, str]:
        return {
            unit: self.explainer.explain([self.images[k] for k in images], [self._map(unit, k) for k in images])
            for unit, images in self._bar(shown.items(), len(shown))
        }

    def _shuffled(self, texts: dict[int, str]) -> dict[int, str] | None:
        """Return to every unit the explanation of another: one circle through all of them."""
        if len(texts) < 2:
            return None
        order = np.random.default_rng([self.seed, 5]).permutation(list(texts)).tolist()
        return {unit: texts[other] for unit, other in zip(order, [*order[1:], order[0]], strict=True)}

    def _map(self, unit: int, image: int) -> Float[Tensor, "grid_row grid_column"]:
        found = self.units.map(unit, image)
        side = round(len(found) ** 0.5)
        grid = (side, side) if self.grid is None else self.grid
        if grid[0] * grid[1] != len(found):
            raise ExplanationError(f"{len(found)} patches are no {grid[0]} x {grid[1]}; give grid=(rows, columns)")
        return found.view(grid)

    def _judged(
        self, images: list[int], text: str, maps: Sequence[Tensor | None] | None = None
    ) -> Float[np.ndarray, " image"]:
        found = []
        for image, map in zip(images, maps or [None] * len(images), strict=True):
            said = self.judge.judge(self.images[image], text, map)
            if not 0 <= said <= 1:
                raise ExplanationError(f"judge {self.judge.name} says {said!r}; expected a number from 0 to 1")
            found.append(float(said))
        return np.array(found)

    def _localisation(self, unit: int, hits: list[int], said: Float[np.ndarray, " image"], text: str) -> float | None:
        """Return how well the map tells the patches that the judge marks, mean over positives where it holds."""
        found = []
        for image, sure in zip(hits, said, strict=False):
            if sure > 0.5:
                map = self._map(unit, image)
                marks = _on_grid(self.judge.localise(self.images[image], text), (map.shape[0], map.shape[1]))
                found.append(auc(map.flatten().double().numpy(), marks.flatten().numpy() >= 0.5))
        known = [value for value in found if value is not None]
        return float(np.mean(known)) if known else None

    def _row(
        self, unit: int, text: str, shown: list[int], hits: list[int], misses: list[int], **numbers: Any
    ) -> Explained:
        return Explained(
            kind=self.units.name, unit=unit, text=text, n_firing=int((self.strengths[:, unit] > 0).sum()),
            explained_on=tuple(shown), positives=tuple(hits), negatives=tuple(misses), **numbers,
        )  # fmt: skip

    def _bar(self, units: Any, total: int | None = None) -> Any:
        return tqdm(units, total=total, desc=self.units.name, disable=not self.progress)


def balanced_accuracy(said: Float[np.ndarray, " image"], fires: Bool[np.ndarray, " image"]) -> float:
    """Return how often a judge is right, positives and negatives counting alike; half a point where it says a half.

    >>> balanced_accuracy(np.array([0.9, 0.4, 0.2, 0.5]), np.array([True, True, False, False]))
    0.625
    """
    right = np.where(said == 0.5, 0.5, (said > 0.5) == fires)
    return float((right[fires].mean() + right[~fires].mean()) / 2)


def agreement(said: Float[np.ndarray, " image"], fits: Bool[np.ndarray, " image"]) -> float:
    """Return the mean of s where an explanation should hold and of 1 - s where not, as in arXiv 2505.24360."""
    return float(np.where(fits, said, 1 - said).mean())


def auc(scores: Float[np.ndarray, " one"], positive: Bool[np.ndarray, " one"]) -> float | None:
    """Return the chance that a positive one scores above another, ties counting half; None without both.

    Args:
        scores: The scores.
        positive: Which are positive.

    >>> auc(np.array([3.0, 1.0, 2.0, 2.0]), np.array([True, False, True, False]))
    0.875
    """
    if positive.all() or not positive.any():
        return None
    above, below = scores[positive][:, None], scores[~positive][None]
    return float(((above > below) + 0.5 * (above == below)).mean())


def _neighbours(directions: Float[Tensor, "unit d"], chosen: list[int]) -> dict[int, list[int]]:
    """Return of each chosen unit the others, that with the nearest row first."""
    rows = torch.nn.functional.normalize(directions.double(), dim=1)
    found = {}
    for unit in chosen:
        order = (rows @ rows[unit]).argsort(descending=True, stable=True).tolist()
        found[unit] = [one for one in order if one != unit]
    return found


def _on_grid(marks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return what a judge says of its own grid at the middle of each cell of another."""
    rows, columns = (((torch.arange(n) + 0.5) * side / n).long() for n, side in zip(grid, marks.shape, strict=True))
    return marks[rows][:, columns]
