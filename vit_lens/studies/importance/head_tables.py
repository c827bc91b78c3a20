"""What each head scores and does, and how far effects agree with each other, as tables."""

__all__ = ["effects_table", "heads_table"]

from typing import Any

import numpy as np
from jaxtyping import Float

from vit_lens.estimates import Estimate, leak_estimate
from vit_lens.studies.findings import Null
from vit_lens.studies.importance.correlating import correlate, halves
from vit_lens.studies.importance.head_correlations import HeadTables
from vit_lens.studies.stand_ins import NULLS
from vit_lens.studies.statistics import finite


def heads_table(tables: HeadTables) -> list[dict[str, Any]]:
    """Return one row for each head: effects, baselines, similarities and leak index of every lens.

    The leak index is that of the centred similarity: the mean of a control over draws and images, divided by the
    site's, with the interval over images; None where it is not applicable, since the site's own interval includes 0.
    """
    columns: dict[str, np.ndarray] = {}
    for (which, kind), values in tables.effects.items():
        columns[f"{which} effect, {kind} ablation"] = values.mean(0)
    for (kind, reading), values in tables.scores.real.items():
        columns[reading if kind == "no lens" else f"{kind}: {reading}"] = values.mean(0)
    for (kind, reading), values in tables.pictures.real.items():
        columns[f"decoded, {kind}: {reading}"] = values.mean(0)
    leaks: dict[str, list[float | None]] = {}
    for control, found in tables.scores.centred.items():
        for (kind, reading), values in found.items():
            estimates = _leaks(values, tables.scores.real[kind, reading])
            name = "leak index" if control == "random" else f"leak index, {NULLS.get(control, control)}"
            leaks[f"{name}: {reading}"] = [one.value for one in estimates]
            leaks[f"{name}, low: {reading}"] = [one.low for one in estimates]
            leaks[f"{name}, high: {reading}"] = [one.high for one in estimates]
    return [
        {"site": str(head), "layer": head.layer, "head": head.head}
        | {name: finite(values[row]) for name, values in columns.items()}
        | {name: values[row] for name, values in leaks.items()}
        for row, head in enumerate(tables.heads)
    ]


def effects_table(tables: HeadTables, *, seed: int) -> list[dict[str, Any]]:
    """Return one row for each effect: Spearman's correlation over heads with every other, and with itself.

    ``between halves`` holds one random half of the images against the other (mean and 95% band of 100 divisions):
    no score can be expected to agree better.
    """
    found = []
    for effect, values in tables.effects.items():
        between = Null.of(correlate(*halves(values, seed=seed)).tolist())
        row = {"effect": f"{effect[0]} effect, {effect[1]} ablation", "between halves": between.mean}
        row |= {"low": between.low, "high": between.high}
        for other, theirs in tables.effects.items():
            both = correlate(values.mean(0, keepdims=True), theirs.mean(0, keepdims=True))
            row[f"{other[0]} effect, {other[1]} ablation"] = finite(both[0])
        found.append(row)
    return found


def _leaks(control: Float[np.ndarray, "image head"], site: Float[np.ndarray, "image head"]) -> list[Estimate]:
    return [leak_estimate(a, b, seed=0) for a, b in zip(control.T, site.T, strict=True)]
