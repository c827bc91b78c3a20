"""Order in captions of one's own: heads and dependents where both orders occur, as far from the end of the text."""

__all__ = ["captions_order_study"]

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vit_lens.studies.asked import Asked
from vit_lens.studies.findings import Null, Score, StudyResult
from vit_lens.studies.layer_statistics import NO_RISE, half_rise
from vit_lens.studies.order.noun_pairs import DEPENDENT_FIRST, HEAD_FIRST, NounPair
from vit_lens.studies.order.study import AT_ONE_DISTANCE, HEAD, LINEAR, OTHER, SYNTACTIC, curve_rows
from vit_lens.studies.statistics import jackknife
from vit_lens.studies.text_setup import TextSetup

_UNDEFINED = f"of a noun {NO_RISE}, or no two captions are at one distance"
_READING = "Diffusion Lens, captions"
_STREAM = 13
_NOTES = (
    "Captions with two nouns of which one governs the other; half of them name the head first, half the dependent. "
    "Both halves are matched for the distances of both nouns to the end of the text. A layer is that of the half-rise "
    "of the accuracy of a group's nouns above that of another caption's nouns. With the lead of the head in either "
    "half, the head's lead is half the sum, so that place and distance cancel; the lead of what is named first is half "
    "the difference, so that the head cancels. Positive: earlier. In a caption what is named first is also farther "
    "from the end: the lead as far from the end compares nouns of different captions, weighted so that those that are "
    "named first and those that are named last are equally often at each distance.",
    "Captions of the two halves are different ones, of different relations (table captions): what stands for the "
    "order of head and dependent may be the relation. The dependent of a compound need not be in the picture at all. "
    "Null: head and dependent exchanged at random, caption by caption. Intervals: jackknife over captions.",
)


class Nouns:
    """Accuracy less chance of both nouns of captions, by layer, and how far the nouns are from the end of the text.

    Rows are captions, head-first ones before the others; the first column is the head, the second the dependent.
    """

    def __init__(
        self,
        rises: Float[np.ndarray, "caption noun site"],
        distances: Int[np.ndarray, "caption noun"],
        is_head_first: np.ndarray,
    ):
        self.rises, self.distances, self.is_head_first = rises, distances, is_head_first

    def exchanged(self, flip: np.ndarray) -> "Nouns":
        """Exchange head and dependent of some captions, distances included."""
        order = np.where(flip[:, None], [[1, 0]], [[0, 1]])
        rises = np.take_along_axis(self.rises, order[:, :, None], axis=1)
        return Nouns(rises, np.take_along_axis(self.distances, order, axis=1), self.is_head_first)

    def lead(self, rows: Int[np.ndarray, " row"], is_head_first: bool) -> float | None:
        """Return how many layers the head is earlier, over those rows that name the head first, or do not."""
        own = rows[self.is_head_first[rows] == is_head_first]
        if not len(own):
            return None
        return _earlier(*self.rises[own].mean(0))

    def head_lead(self, rows: Int[np.ndarray, " row"]) -> float | None:
        """Return the half-sum of the head's leads in both orders."""
        leads = [self.lead(rows, first) for first in (True, False)]
        return None if leads[0] is None or leads[1] is None else (leads[0] + leads[1]) / 2

    def first_lead(self, rows: Int[np.ndarray, " row"]) -> float | None:
        """Return the half-difference of the head's leads in both orders."""
        leads = [self.lead(rows, first) for first in (True, False)]
        return None if leads[0] is None or leads[1] is None else (leads[0] - leads[1]) / 2

    def lead_at_one_distance(self, rows: Int[np.ndarray, " row"]) -> float | None:
        """Return how many layers what is named first is earlier, both at the distances at which both occur."""
        named = [np.where(self.is_head_first[rows], 0, 1), np.where(self.is_head_first[rows], 1, 0)]
        far = [self.distances[rows, column] for column in named]
        curves = [self.rises[rows, column] for column in named]
        found, total = np.zeros((2, self.rises.shape[-1])), 0
        for distance in sorted(set(far[0].tolist()) & set(far[1].tolist())):
            own = [curve[where == distance] for curve, where in zip(curves, far, strict=True)]
            weight = min(map(len, own))
            found += weight * np.stack([some.mean(0) for some in own])
            total += weight
        return _earlier(*(found / total)) if total else None


def captions_order_study(
    setup: TextSetup, asked: Sequence[Asked], matches: Sequence[tuple[NounPair, NounPair]], *,
    about: Mapping[str, Any], n_shuffles: int = 200, command: str | None = None,
) -> StudyResult:  # fmt: skip
    """Hold the layers at which heads and dependents of captions appear against their order.

    Args:
        setup: The setup; its judge must be able to answer questions about any picture.
        asked: What :func:`vit_lens.studies.order.ask_of_captions` made of the matches.
        matches: Head-first captions, each with one that names the dependent first.
        about: What a reader must know of where they come from: file, parser, how many there were.
        n_shuffles: How many draws the null has.
        command: The command that makes this result again; None where there is none.
    """
    answers = setup.answers("captions", asked)
    kinds = (HEAD_FIRST, DEPENDENT_FIRST)
    rises = [
        np.stack([(answers[kind].of(part) - answers[kind].chance(part)).mean(1) for part in (HEAD, OTHER)], axis=1)
        for kind in kinds
    ]
    every = [*(a for a, _ in matches), *(b for _, b in matches)]
    distances = np.array([[one.distance(part) for part in (HEAD, OTHER)] for one in every])
    nouns = Nouns(np.concatenate(rises), distances, np.array([one.kind == HEAD_FIRST for one in every]))
    measures: dict[str, Callable[[Nouns, Int[np.ndarray, " row"]], float | None]] = {
        SYNTACTIC: Nouns.head_lead, LINEAR: Nouns.first_lead, AT_ONE_DISTANCE: Nouns.lead_at_one_distance,
    }  # fmt: skip
    tables = {"curves": curve_rows(answers), "captions": [_row(one) for one in every], "distances": _strata(matches)}
    return StudyResult(
        study="order", setup=setup.describe(), command=command,
        scores=tuple(_score(measure, of, nouns, setup, n_shuffles) for measure, of in measures.items()),
        options={"n_matches": len(matches), "n_shuffles": n_shuffles, **about}, tables=tables, notes=_NOTES,
    )  # fmt: skip


def _score(
    measure: str, of: Callable[[Nouns, np.ndarray], float | None], nouns: Nouns, setup: TextSetup, n_shuffles: int
) -> Score:
    n, _, layers = nouns.rises.shape
    generator, every = setup.generator(_STREAM), np.arange(n)
    draws = [of(nouns.exchanged(generator.random(n) < 0.5), every) for _ in range(n_shuffles)]
    return Score(
        measure=measure, reading=_READING, level="decoded", n=n, unit="captions",
        estimate=jackknife(lambda rows: of(nouns, rows), n, most=float(layers), why=_UNDEFINED),
        nulls={"exchanged": Null.of(draws)},
    )  # fmt: skip


def _earlier(one: Float[np.ndarray, " site"], than: Float[np.ndarray, " site"]) -> float | None:
    early, late = half_rise(one), half_rise(than)
    return None if early is None or late is None else late - early


def _row(one: NounPair) -> dict[str, Any]:
    return {
        "kind": one.kind, "caption": one.text, "head": one.head, "dependent": one.dependent, "relation": one.relation,
        "first to end": one.first, "second to end": one.second,
    }  # fmt: skip


def _strata(matches: Sequence[tuple[NounPair, NounPair]]) -> list[dict[str, Any]]:
    counts = Counter((a.first, a.second) for a, _ in matches)
    return [
        {"first to end": first, "second to end": second, "matches": n} for (first, second), n in sorted(counts.items())
    ]
