"""``Explanations``: what units were said to fire on, how far that held, and of which nothing could be said."""

__all__ = ["Explained", "Explanations", "Skipped"]

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from vit_lens.errors import ExplanationError, OutputError, nearest
from vit_lens.estimates import LEVEL, MIN_FOR_INTERVAL, Estimate, mean_interval
from vit_lens.files import as_path, check_fields, make_directory, read_json, write_atomic

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = "vit_lens.explanations.1"
_ADVICE = "explain again"
_MEASURES = ("score", "auc", "localisation", "shuffled", "constant")
_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One unit: what it was said to fire on, and how far that held.

    Attributes:
        kind: What it is a unit of.
        unit: Its number there.
        text: The explanation.
        n_firing: On how many images it fires, of both halves.
        explained_on: The images that were shown to explain it.
        positives: The images that were judged and on which it fires.
        negatives: The images that were judged beside them.
        score: Of ``mended`` the balanced accuracy of the judge; of ``paper`` the mean of s where it should hold and
            1 - s where not.
        auc: How well its strength tells the judged images of which the explanation holds; None where all are alike, and
            of ``paper``.
        localisation: How well its strength at a patch tells where the judge sees what the explanation says, mean over
            the positives of which it holds; None where there is none, and of ``paper``.
        shuffled: The score with the explanation of another unit; None where there is no other.
        constant: The score of a judge that always says a half.

    >>> results = vl.explaining.Explanations.load(explained)
    >>> results.rows[0].text in vl.explaining.AttributeOracle.of_world(10).values
    True
    """

    kind: str
    unit: int
    text: str
    n_firing: int
    explained_on: tuple[int, ...]
    positives: tuple[int, ...]
    negatives: tuple[int, ...]
    score: float
    auc: float | None
    localisation: float | None
    shuffled: float | None
    constant: float


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A unit of which nothing is said, and why.

    >>> Skipped(kind="dictionary", unit=3, why="never fires").why
    'never fires'
    """

    kind: str
    unit: int
    why: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Explanations:
    """Explanations of units of several kinds, each tested.

    Attributes:
        protocol: ``mended`` or ``paper``.
        explainer: Who explained.
        judge: Who judged.
        n_images: How many images there were, of both halves.
        least: On how many images of each half a unit had to fire.
        seed: The seed of all that was drawn.
        rows: The units.
        skipped: Those of which nothing is said.
        images: What the images are called, in the order of their numbers; empty where nobody said.
        no_scene: How many pictures that were drawn are no scene, and were left out; None where nobody looked.

    >>> results = Explanations.load(explained)
    >>> print(results)
    mended, explained and judged by oracle, 240 images
      dictionary: score ..., ...
      untrained: score ..., ...
    >>> results.to_frame().columns[:4].tolist()
    ['kind', 'unit', 'text', 'n_firing']
    >>> print(results.minus("dictionary", "untrained"))
    +0.00 [-0.09, +0.10]
    """

    protocol: str
    explainer: str
    judge: str
    n_images: int
    least: int
    seed: int
    rows: tuple[Explained, ...]
    skipped: tuple[Skipped, ...] = ()
    images: tuple[str, ...] = ()
    no_scene: int | None = None

    @property
    def kinds(self) -> list[str]:
        """The kinds, in the order in which they were explained; also those of which every unit was skipped."""
        found = dict.fromkeys(row.kind for row in self.rows)
        return [*found, *(kind for kind in dict.fromkeys(row.kind for row in self.skipped) if kind not in found)]

    def values(self, kind: str, measure: str = "score") -> Float[np.ndarray, " unit"]:
        """Return a number of every explained unit of a kind; nan where it is undefined.

        Args:
            kind: The kind.
            measure: ``score``, ``auc``, ``localisation``, ``shuffled`` or ``constant``.

        Raises:
            ExplanationError: There is no such kind or measure.
        """
        for name, known in ((kind, self.kinds), (measure, _MEASURES)):
            if name not in known:
                raise ExplanationError(f"no {name!r} in these explanations; nearest: {nearest(name, known)}")
        found = [getattr(row, measure) for row in self.rows if row.kind == kind]
        return np.array([math.nan if value is None else value for value in found], dtype=np.float64)

    def estimate(self, kind: str, measure: str = "score") -> Estimate:
        """Return the mean of a number over the units of a kind, with a bootstrap interval over these.

        Args:
            kind: The kind.
            measure: As for :meth:`values`.
        """
        return mean_interval(self.values(kind, measure), seed=self.seed)

    def minus(self, kind: str, other: str, measure: str = "score") -> Estimate:
        """Return the mean of one kind less that of another, with a bootstrap interval over the units of both.

        Args:
            kind: The kind.
            other: What is taken from it.
            measure: As for :meth:`values`.
        """
        return difference([self.values(kind, measure)], [self.values(other, measure)], seed=self.seed)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return by kind how many units were explained, never fire, and fire on too few images or too many."""
        found = {kind: {"explained": 0, "never fires": 0, "too few or many": 0} for kind in self.kinds}
        for row in self.rows:
            found[row.kind]["explained"] += 1
        for row in self.skipped:
            found[row.kind]["never fires" if row.why == "never fires" else "too few or many"] += 1
        return found

    def to_frame(self) -> "pd.DataFrame":
        """Return the units that were explained as a table, one a row, best first within each kind."""
        import pandas as pd

        frame = pd.DataFrame([asdict(row) for row in self.rows], columns=[*Explained.__dataclass_fields__])
        order = {kind: place for place, kind in enumerate(self.kinds)}
        return frame.iloc[
            np.lexsort((frame["unit"], -frame["score"].astype(float), frame["kind"].map(order).astype(int)))
        ].reset_index(drop=True)

    def __str__(self) -> str:
        counts = self.counts()
        who = f"{self.explainer}" if self.explainer == self.judge else f"{self.explainer}, judged by {self.judge}"
        lines = [
            f"{self.protocol}, explained {'and judged ' if who == self.judge else ''}by {who}, {self.n_images} images"
            + ("" if self.no_scene is None else f"; {self.no_scene} others drawn, which are no scene")
        ]
        for kind, told in counts.items():
            said = [f"score {self.estimate(kind)}"]
            said += [f"{name} {self.estimate(kind, name)}" for name in _MEASURES[1:4]
                     if self.estimate(kind, name).value is not None]  # fmt: skip
            said.append(f"n = {told['explained']} units, {told['never fires']} never fire, "
                        f"{told['too few or many']} on too few images or too many")  # fmt: skip
            lines.append(f"  {kind}: {'; '.join(said)}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Explanations({len(self.rows)} units of {', '.join(self.kinds)}; {self.protocol}, {self.explainer})"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write all of it as one JSON file, whole or not at all, and return its path.

        Args:
            path: The file.

        Raises:
            OutputError: The file cannot be written.
        """
        place = as_path(path, OutputError)
        make_directory(place.parent)
        write_atomic(place, json.dumps({"format": _FORMAT, **asdict(self)}, allow_nan=False, indent=0).encode())
        return place

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Explanations":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.

        Raises:
            ExplanationError: There is none, or it is damaged or something else.
        """
        place = as_path(path, ExplanationError)
        said = read_json(place, ExplanationError, _ADVICE)
        if (form := said.pop("format", None)) != _FORMAT:
            raise ExplanationError(f"{place} has format {form!r:.60}, expected {_FORMAT!r}; {_ADVICE}")
        parts = {"rows": Explained, "skipped": Skipped}
        found: dict[str, Any] = check_fields(cls, {**said, **dict.fromkeys(parts, ())}, str(place), ExplanationError)
        found |= {name: _all_of(kind, said.get(name), place) for name, kind in parts.items()}
        return cls(**found)


def _all_of(kind: Any, said: Any, place: Path) -> tuple[Any, ...]:
    if not isinstance(said, list):
        raise ExplanationError(f"{place} holds no list of units; {_ADVICE}")
    return tuple(kind(**check_fields(kind, one, str(place), ExplanationError)) for one in said)


def difference(some: Sequence[np.ndarray], others: Sequence[np.ndarray], *, seed: int) -> Estimate:
    """Return the mean of some groups of units less that of others, groups counting alike, with a bootstrap interval.

    Args:
        some: Numbers of units, in groups such as seeds; what is not finite is left out.
        others: The same of what is taken away; none takes nothing.
        seed: The seed of the draws.

    >>> ones, twos = [np.ones(8)], [np.full(9, 2.0), np.full(7, 4.0)]
    >>> str(difference(twos, ones, seed=0)), str(difference(twos, [], seed=0))
    ('+2.00 [+2.00, +2.00]', '+3.00 [+3.00, +3.00]')
    """
    sides = [[group[np.isfinite(group)] for group in side] for side in (some, others)]
    if not some or any(not len(group) for side in sides for group in side):
        return Estimate(None, why="no defined value")
    value = float(np.mean([group.mean() for group in sides[0]]))
    value -= float(np.mean([group.mean() for group in sides[1]])) if others else 0.0
    if (least := min(len(group) for side in sides for group in side)) < MIN_FOR_INTERVAL:
        return Estimate(value, why=f"n = {least} gives no interval; {MIN_FOR_INTERVAL} would")
    generator = np.random.default_rng(seed)
    drawn = [
        np.mean([generator.choice(group, (_DRAWS, len(group))).mean(1) for group in side], axis=0) if side else 0.0
        for side in sides
    ]
    low, high = np.quantile(drawn[0] - drawn[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))
