"""What denoisers of other layers draw, beside what the encoder's own denoiser draws of the last layer."""

__all__ = ["RATE", "RATIO", "SCENES", "SHOWN", "rate_rows", "rates", "with_both_orders"]

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vit_lens.errors import StudyError
from vit_lens.studies.asked import Asked
from vit_lens.studies.findings import Score
from vit_lens.studies.layer_answers import LayerAnswers
from vit_lens.studies.layer_statistics import LEAST_RISE, NO_RISE, excess
from vit_lens.studies.statistics import finite, jackknife

SCENES = "scenes: rate of another layer's denoiser over that of the encoder's own"
RATIO = "rate of another layer's denoiser over that of the encoder's own"
RATE = "accuracy above chance, another layer's denoiser"
BOTH = "pairs, both orders"
SHOWN = ("scene", "layout", "object 1", "object 2", "both there", "colour 1", "texture 1", "shape 1")
"""The parts that rates are told of."""
_ORDERS = ("pair, head first", "pair, fronted")
_MOST = 1 / LEAST_RISE

Kinds = Mapping[str, LayerAnswers]


def with_both_orders(kinds: Kinds, asked: Sequence[Asked]) -> dict[str, LayerAnswers]:
    """Return answers by kind, and beside them those of the pairs in both orders, a scene and its two sentences a unit.

    Raises:
        StudyError: The two orders are of different scenes.
    """
    found = dict(kinds)
    if not all(kind in kinds for kind in _ORDERS):
        return found
    first, second = (kinds[kind] for kind in _ORDERS)
    scenes = [[one.sentence and one.sentence.scene for one in asked if one.kind == kind] for kind in _ORDERS]
    if scenes[0] != scenes[1]:
        raise StudyError("the pairs are of other scenes in the one order than in the other; say each scene in both")
    joined = {
        name: np.concatenate([getattr(first, name), getattr(second, name)], 1)
        for name in ("right", "mismatched", "residual", *(["second"] if first.second is not None else []))
    }
    return found | {BOTH: replace(first, kind=BOTH, **joined)}


def rates(name: str, shown: Kinds, own: Kinds) -> Iterator[Score]:
    """Give the accuracy above chance of a denoiser's pictures, and its ratio to that of the own denoiser's.

    Args:
        name: The denoiser.
        shown: The judge's answers for it, of one site.
        own: The judge's answers for the own denoiser; the last site is taken.
    """
    for kind, found in shown.items():
        for part in (part for part in SHOWN if part in found.parts):
            theirs, ours = (
                (one.of(part)[..., -1:], one.chance(part)[..., -1:]) for one in (found, own[kind])
            )  # fmt: skip
            n = len(found.prompts)

            def rate(rows: np.ndarray, pair: Any = theirs) -> float:
                return float(excess(pair[0][rows], pair[1][rows])[-1])

            def ratio(rows: np.ndarray, rate: Any = rate, theirs: Any = theirs, ours: Any = ours) -> float | None:
                least = rate(rows, ours)
                return None if least < LEAST_RISE else rate(rows, theirs) / least

            said = {"level": "decoded", "n": n, "unit": "scenes" if kind == BOTH else "prompts"}
            whole = [float(pair[0].mean()) for pair in (theirs, ours)]
            controls = {"chance not taken away": whole[0] / whole[1] if whole[1] >= LEAST_RISE else None}
            estimate = jackknife(ratio, n, most=_MOST, why=f"of the own denoiser {NO_RISE}")
            yield Score(measure=RATIO, reading=f"{name}; {kind}: {part}", estimate=estimate, controls=controls, **said)
            yield Score(
                measure=RATE, reading=f"{name}; {kind}: {part}", estimate=jackknife(rate, n, most=1.0), **said,
                controls={"own denoiser, last layer": rate(np.arange(n), ours)},
            )  # fmt: skip
            if (kind, part) == (BOTH, "scene"):
                yield Score(measure=SCENES, reading=name, estimate=estimate, controls=controls, **said)


def rate_rows(name: str, shown: Kinds, own: Kinds) -> list[dict[str, Any]]:
    """Give every part of every kind: accuracy and chance under a denoiser, and under the own one at the last layer."""
    return [
        {
            "denoiser": name, "kind": kind, "part": part, "n": len(found.prompts),
            **found.told(part, 0), "chance": round(float(found.chance(part).mean()), 5),
            **{f"own {name}": value for name, value in own[kind].told(part, -1).items()},
            "own chance": round(float(own[kind].chance(part)[..., -1].mean()), 5),
            "residual": finite(round(float(found.residual.mean()), 6)),
            "own residual": finite(round(float(own[kind].residual[..., -1].mean()), 6)),
        }
        for kind, found in shown.items()
        for part in found.parts
    ]  # fmt: skip
