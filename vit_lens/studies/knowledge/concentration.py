"""Gradual or localised? The share of a whole effect that its best layer has."""

__all__ = [
    "BEST",
    "CONCENTRATION",
    "PLANTED",
    "best_layer",
    "concentration",
    "concentration_rows",
    "concentration_scores",
]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vit_lens.studies.findings import Null, Score
from vit_lens.studies.knowledge.effects import Traced
from vit_lens.studies.statistics import finite, jackknife

CONCENTRATION = "share of the whole effect that the best layer has"
PLANTED = "share of the whole effect that the best layer has, in an encoder with a planted table"
BEST = "layer with the largest effect"
_LEAST = 1e-6  # a whole effect below this share of the difference is rounding
_NO_EFFECT = "no block has an effect"
Effects = Float[np.ndarray, "name layer"]


def concentration(effects: Effects) -> float | None:
    """Return the largest effect of a layer, meant over names, as a share of the sum of all that are positive.

    Returns:
        1 where one layer does it all; 1/L where L layers do the same; None where no layer has an effect, or names are
        not apart at all.

    >>> from vit_lens.studies.knowledge.concentration import concentration
    >>> import numpy as np
    >>> concentration(np.array([[0.2, 0.6, -0.1], [0.0, 0.2, 0.1]]))
    0.8
    """
    mean = _gain(effects)
    whole = float(mean.sum())
    return float(mean.max()) / whole if np.isfinite(whole) and whole > _LEAST else None


def best_layer(effects: Effects) -> float | None:
    """Return the layer with the largest effect, meant over names; None where no layer has any."""
    return None if concentration(effects) is None else float(_gain(effects).argmax())


def _gain(effects: Effects) -> Float[np.ndarray, " layer"]:
    return np.maximum(effects.mean(0), 0.0)


def concentration_scores(
    own: Traced, planted: Mapping[int, Traced], generator: np.random.Generator, n_shuffles: int
) -> list[Score]:
    """Return how concentrated every effect is, beside an even spread, shuffled layers and planted tables.

    Args:
        own: Effects in the encoder.
        planted: Effects in encoders with a table, by the block that has it.
        generator: Shuffles the layers of each name.
        n_shuffles: How often.
    """
    found = []
    for (kind, outcome), effects in own.effects.items():
        reading = _reading(kind, outcome)
        known = {layer: one.effects[kind, outcome] for layer, one in planted.items() if (kind, outcome) in one.effects}
        shares = [share for one in known.values() if (share := concentration(one)) is not None]
        at = [best == layer for layer, one in known.items() if (best := best_layer(one)) is not None]
        shuffled = [concentration(generator.permuted(effects, axis=1)) for _ in range(n_shuffles)]
        n, n_layers = effects.shape
        found += [
            Score(
                measure=CONCENTRATION, reading=reading, level="embedding", n=n, unit="names",
                estimate=jackknife(lambda rows, of=effects: concentration(of[rows]), n, most=1.0, why=_NO_EFFECT),
                nulls={"layers shuffled within each name": Null.of(shuffled)},
                controls={
                    "even spread": 1 / n_layers,
                    "whole effect": finite(_gain(effects).sum()),
                    "planted tables, least": min(shares, default=None),
                    "planted tables found at their layer": float(np.mean(at)) if at else None,
                },
            ),
            _best(reading, effects),
        ]  # fmt: skip
    for layer, one in planted.items():
        for (kind, outcome), effects in one.effects.items():
            reading, n = f"table in L{layer}: {_reading(kind, outcome)}", len(effects)
            estimate = jackknife(lambda rows, of=effects: concentration(of[rows]), n, most=1.0, why=_NO_EFFECT)
            found += [
                Score(measure=PLANTED, reading=reading, level="embedding", estimate=estimate, n=n, unit="names"),
                _best(reading, effects),
            ]
    return found


def _reading(kind: str, outcome: str) -> str:
    return f"{kind}; {outcome}"


def _best(reading: str, effects: Effects) -> Score:
    n, n_layers = effects.shape
    return Score(
        measure=BEST, reading=reading, level="embedding", n=n, unit="names",
        estimate=jackknife(lambda rows: best_layer(effects[rows]), n, most=float(n_layers), why=_NO_EFFECT),
    )  # fmt: skip


def concentration_rows(traced: Traced, kinds: Sequence[str], encoder: str) -> list[dict[str, Any]]:
    """Return the effect of every layer, over all names and over those of each kind, as rows of a table."""
    some = {"all": np.ones(len(kinds), dtype=bool)}
    some |= {kind: np.array([one == kind for one in kinds]) for kind in dict.fromkeys(kinds)}
    rows = []
    for (effect, outcome), values in traced.effects.items():
        for layer in range(values.shape[1]):
            row = {"encoder": encoder, "effect": effect, "outcome": outcome, "layer": layer}
            rows.append(row | {f"{kind} names": _mean(values[own, layer]) for kind, own in some.items()})
    return rows


def _mean(values: Float[np.ndarray, " name"]) -> float | None:
    return round(float(values.mean()), 6) if len(values) and np.isfinite(values).all() else None
