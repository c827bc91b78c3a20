"""Common against rare: how many layers later pictures show what a rare name means."""

__all__ = ["HALF", "LATER", "frequency_rows", "frequency_scores"]

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vit_lens.studies.findings import Null, Score
from vit_lens.studies.layer_answers import LayerAnswers
from vit_lens.studies.layer_statistics import NO_RISE, excess, first_right, half_rise, stays_right
from vit_lens.studies.statistics import jackknife

LATER = "half-rise, rare less common, in layers"
HALF = "half-rise above mismatched prompts"
LAST = "accuracy above mismatched prompts, last layer"
_STATISTICS: dict[str, Callable[[np.ndarray], float | None]] = {
    "first right": first_right, "right from here on": stays_right,
}  # fmt: skip
_Pair = tuple[Float[np.ndarray, "name noise site"], Float[np.ndarray, "name noise site"]]


def frequency_scores(
    common: LayerAnswers, rare: LayerAnswers, generator: np.random.Generator, n_shuffles: int
) -> Iterator[Score]:
    """Give, for every part, by how much rare names rise later, and each kind's own statistics of layers.

    Args:
        common: Answers for common names.
        rare: Answers for rare names, with the same parts.
        generator: Permutes which names are called rare.
        n_shuffles: How often.
    """
    n_common, n = len(common.prompts), len(common.prompts) + len(rare.prompts)
    is_rare = np.arange(n) >= n_common
    for part in common.parts:
        both = tuple(np.concatenate(each) for each in zip(_answers(common, part), _answers(rare, part), strict=True))

        def later(rows: Int[np.ndarray, " row"], labels: np.ndarray = is_rare, of: Any = both) -> float | None:
            halves = [_half(of, rows[labels[rows] == kind]) for kind in (False, True)]
            return None if halves[0] is None or halves[1] is None else halves[1] - halves[0]

        every, layers = np.arange(n), float(common.right.shape[2])
        draws = [later(every, generator.permutation(is_rare)) for _ in range(n_shuffles)]
        yield Score(
            measure=LATER, reading=part, level="decoded", n=n, unit="names",
            estimate=jackknife(later, n, most=layers, why=NO_RISE),
            nulls={"frequency labels permuted": Null.of(draws)},
        )  # fmt: skip
    for found in (common, rare):
        for part in found.parts:
            yield from _own(found, part)


def _answers(found: LayerAnswers, part: str) -> _Pair:
    return found.of(part), found.chance(part)


def _half(both: _Pair, rows: Int[np.ndarray, " row"]) -> float | None:
    return half_rise(excess(both[0][rows], both[1][rows])) if len(rows) else None


def _own(found: LayerAnswers, part: str) -> Iterator[Score]:
    both = _answers(found, part)
    n, _, layers = both[0].shape

    def score(measure: str, of: Callable[[np.ndarray], float | None], most: float) -> Score:
        return Score(
            measure=measure, reading=f"{found.kind}: {part}", level="decoded", n=n, unit="names",
            estimate=jackknife(of, n, most=most, why=NO_RISE),
        )  # fmt: skip

    yield score(HALF, lambda rows: _half(both, rows), float(layers))
    yield score(LAST, lambda rows: float(excess(both[0][rows], both[1][rows])[-1]), 1.0)
    for name, of in _STATISTICS.items():
        yield score(name, lambda rows, of=of: of(both[0][rows].reshape(-1, layers)), float(layers))


def frequency_rows(found: LayerAnswers) -> list[dict[str, Any]]:
    """Give each layer: accuracy and chance of every part, and the share of the last layer's excess that it has."""
    rows = []
    for part in found.parts:
        right, chance = (each.mean((0, 1)) for each in _answers(found, part))
        above = right - chance
        rows += [
            {
                "kind": found.kind, "part": part, "site": site, "n": len(found.prompts),
                **found.told(part, i), "mismatched": round(float(chance[i]), 5),
                "share of the last": round(float(above[i] / above[-1]), 5) if above[-1] > 0 else None,
            }
            for i, site in enumerate(found.sites)
        ]  # fmt: skip
    return rows
