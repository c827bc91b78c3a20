"""Readings side by side: curves of accuracy by layer, and how many layers one reading is later than another."""

__all__ = [
    "HALF", "LAST", "LENS", "ORDER", "RANKS", "curve_rows", "later", "later_than", "of_reading", "order_of_parts",
    "order_rows",
]  # fmt: skip

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from vit_lens.studies.findings import Score
from vit_lens.studies.layer_answers import LayerAnswers
from vit_lens.studies.layer_statistics import NO_RISE, excess, half_rise
from vit_lens.studies.statistics import finite, jackknife, spearman

Kinds = Mapping[str, LayerAnswers]
Rows = Int[np.ndarray, " row"]

LENS = "Diffusion Lens"
HALF, LAST = "half-rise", "accuracy above chance, last layer"
ORDER = "half-rise beyond the interpolation's, less the mean of all parts"
RANKS = "rank correlation over parts, half-rises of the Diffusion Lens and of the interpolation"


def later_than(other: str) -> str:
    """Return the name of the measure of how much later the Diffusion Lens is than another reading."""
    return f"half-rise, {LENS} minus {other}"


def curve_rows(reading: str, kinds: Kinds) -> list[dict[str, Any]]:
    """Give each layer of a reading: accuracy and chance of every part, and how far pictures are from any scene."""
    return [
        {
            "reading": reading, "kind": kind, "part": part, "layer": layer, "site": site, "n": len(found.prompts),
            **found.told(part, layer),
            "chance": round(float(found.chance(part)[..., layer].mean()), 5),
            "residual": finite(round(float(found.residual[..., layer].mean()), 6)),
        }
        for kind, found in kinds.items()
        for part in found.parts
        for layer, site in enumerate(found.sites)
    ]  # fmt: skip


def of_reading(reading: str, level: str, kinds: Kinds) -> Iterator[Score]:
    """Give the half-rise of every part under a reading, and its accuracy above chance at the last layer."""
    for kind, found in kinds.items():
        for part in found.parts:
            yield from _of_part(reading, level, kind, found, part)


def _of_part(reading: str, level: str, kind: str, found: LayerAnswers, part: str) -> Iterator[Score]:
    right, chance = found.of(part), found.chance(part)
    n, _, layers = right.shape
    said: Any = {"reading": f"{kind}: {part}", "level": level, "n": n, "unit": "prompts"}
    half = jackknife(lambda rows: _half(found, part, rows), n, most=layers, why=NO_RISE)
    yield Score(measure=f"{HALF}, {reading}", estimate=half, **said)
    last = jackknife(lambda rows: float(excess(right[rows], chance[rows])[-1]), n, most=1.0)
    yield Score(measure=f"{LAST}, {reading}", estimate=last, **said)


def later(own: Kinds, other: Kinds, name: str, level: str) -> Iterator[Score]:
    """Give how many layers later each part is half there under the Diffusion Lens than under another reading."""
    for kind, found in own.items():
        for part in other[kind].parts:
            n, _, layers = found.of(part).shape

            def lead(rows: Rows, pair: Any = (found, other[kind]), part: str = part) -> float | None:
                first, second = (_half(one, part, rows) for one in pair)
                return None if first is None or second is None else first - second

            yield Score(
                measure=later_than(name), reading=f"{kind}: {part}", level=level, n=n, unit="prompts",
                estimate=jackknife(lead, n, most=float(layers), why=NO_RISE),
            )  # fmt: skip


def order_of_parts(own: Kinds, null: Kinds) -> Iterator[Score]:
    """Give what is left of the order of a kind's parts beyond the interpolation's, and how alike the two orders are.

    Of a part it is how much later it is under the lens than under the interpolation, less the mean of that over the
    kind's parts: a shift of all parts at once is no order.
    """
    for kind, found in own.items():
        n, _, layers = found.residual.shape
        for number, part in enumerate(found.parts):

            def beyond(rows: Rows, pair: Any = (found, null[kind]), number: int = number) -> float | None:
                both = [_halves(one, rows) for one in pair]
                shift = both[0] - both[1]
                return float(shift[number] - shift.mean()) if np.isfinite(shift).all() else None

            yield Score(
                measure=ORDER, reading=f"{kind}: {part}", level="decoded", n=n, unit="prompts",
                estimate=jackknife(beyond, n, most=2.0 * layers, why=f"of a part {NO_RISE}"),
            )  # fmt: skip

        def alike(rows: Rows, pair: Any = (found, null[kind])) -> float | None:
            return spearman(*(_halves(one, rows) for one in pair))

        yield Score(
            measure=RANKS, reading=kind, level="decoded", n=n, unit="prompts", estimate=jackknife(alike, n, most=1.0)
        )


def order_rows(own: Kinds, null: Kinds) -> list[dict[str, Any]]:
    """Give the half-rise of each part and its rank among the kind's, under the lens and under the interpolation."""
    rows = []
    for kind, found in own.items():
        every = np.arange(len(found.prompts))
        both = {"lens": _halves(found, every), "interpolation": _halves(null[kind], every)}
        for number, part in enumerate(found.parts):
            row: dict[str, Any] = {"kind": kind, "part": part, "n": len(every)}
            for name, halves in both.items():
                ranks = rankdata(halves, nan_policy="omit")
                row |= {f"half-rise, {name}": finite(halves[number]), f"rank, {name}": finite(ranks[number])}
            rows.append(row)
    return rows


def _half(found: LayerAnswers, part: str, rows: Rows) -> float | None:
    return half_rise(excess(found.of(part)[rows], found.chance(part)[rows]))


def _halves(found: LayerAnswers, rows: Rows) -> Float[np.ndarray, " part"]:
    """Return the half-rise of every part; nan where a part has none."""
    return np.array([_half(found, part, rows) for part in found.parts], dtype=float)
