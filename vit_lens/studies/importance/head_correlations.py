"""From what heads score and do to correlations over heads, each beside its nulls and controls."""

__all__ = [
    "COVARIANCE", "EXCESS", "GIVEN", "NORMS", "NO_CONTENT", "OTHER", "PLACEBO", "SHUFFLED", "UNTRAINED", "HeadTables",
    "correlations", "measure_name",
]  # fmt: skip

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from vit_lens.addresses import Site
from vit_lens.studies.findings import Null, Score
from vit_lens.studies.importance.correlating import correlate, estimate, image_weights, shuffled
from vit_lens.studies.importance.head_effects import Effect
from vit_lens.studies.importance.head_pictures import PictureScores
from vit_lens.studies.importance.head_scores import HeadScores, Key
from vit_lens.studies.stand_ins import NULLS
from vit_lens.studies.statistics import finite

NORMS = ("norm of h", "norm of h minus its mean")
GIVEN = ", given the norms"
PLACEBO, NO_CONTENT, SHUFFLED = "equal-norm placebo", "no content", "heads shuffled"
COVARIANCE = NULLS["covariance"]
OTHER, UNTRAINED = "same head, other image", "random weights"
_LARGER = (PLACEBO, NO_CONTENT)
EXCESS = {"embedding": "excess over the larger null", "decoded": "excess over the placebo"}

_WHY = "the scores of all heads are equal, or there are fewer than three heads"
_WHY_GIVEN = f"{_WHY}, or the norms explain them whole"
_Means = Mapping[Key, Float[np.ndarray, "_ head"]]


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadTables:
    """What scores and effects every head has.

    Attributes:
        heads: Sites.
        effects: Total and direct, by replacement.
        scores: At the embedding level.
        pictures: Of decoded pictures; None for none.
        untrained: The same of a model with random weights; None for none.
    """

    heads: list[Site]
    effects: dict[Effect, Float[np.ndarray, "image head"]]
    scores: HeadScores
    pictures: PictureScores = field(default_factory=PictureScores)
    untrained: "HeadTables | None" = None


def measure_name(kind: str, effect: Effect, *, given: bool = False) -> str:
    """Return the measure's name: ``centred similarity with total effect, mean ablation``."""
    return f"{kind} with {effect[0]} effect, {effect[1]} ablation{GIVEN if given else ''}"


def correlations(tables: HeadTables, *, seed: int) -> list[Score]:
    """Return Spearman's correlation over heads of every score with every effect.

    Intervals are over images; those of decoded scores over the images drawn, with effects and norms of all images.
    """
    n = len(next(iter(tables.effects.values())))
    weights = image_weights(n, seed=seed)
    drawn = {key: weights @ values for key, values in tables.scores.real.items()}
    effects = {effect: weights @ values for effect, values in tables.effects.items()}
    found = [
        _score(tables, key, effect, given, drawn[key], effects[effect], _norms(drawn, given), n, seed)
        for key, effect, given in _wanted(tables.scores.real, effects)
    ]
    n_pictures = min((len(values) for values in tables.pictures.real.values()), default=1)
    weights = image_weights(n_pictures, seed=seed)
    of_all = {key: values[:1] for key, values in drawn.items()}
    for key, effect, given in _wanted(tables.pictures.real, effects):
        if effect[1] != "zero":
            values = correlate(weights @ tables.pictures.real[key], effects[effect][:1], _norms(of_all, given))
            nulls = _picture_nulls(tables, key, effects[effect][:1], _norms(of_all, given), seed)
            found.append(_made(key, effect, given, "decoded", values, n_pictures, nulls, {}))
    return found


def _wanted(keys: Mapping[Key, object], effects: Mapping[Effect, object]) -> Iterator[tuple[Key, Effect, bool]]:
    for key in keys:
        for effect in effects:
            yield key, effect, False
            if key[1] not in NORMS and effect[1] == "mean":
                yield key, effect, True


def _norms(means: _Means, given: bool) -> tuple[Float[np.ndarray, "_ head"], ...]:
    return tuple(means["no lens", name] for name in NORMS) if given else ()


def _score(
    tables: HeadTables, key: Key, effect: Effect, given: bool, score: np.ndarray, does: np.ndarray,
    norms: tuple[np.ndarray, ...], n: int, seed: int,
) -> Score:  # fmt: skip
    scores, nulls = tables.scores, {}
    if key in scores.placebo:
        nulls[PLACEBO] = correlate(scores.placebo[key], does[:1], _norms(scores.placebo, given))
    if key in scores.covariance:
        nulls[COVARIANCE] = correlate(scores.covariance[key], does[:1], _norms(scores.covariance, given))
    if key in scores.no_content:
        same = scores.no_content_direct["direct", effect[1]]
        nulls[NO_CONTENT] = correlate(scores.no_content[key], same, _norms(scores.no_content, given))
    nulls[SHUFFLED] = correlate(shuffled(score[0], seed=seed), does[:1], tuple(norm[:1] for norm in norms))
    controls = {}
    if key in scores.other:
        controls[OTHER] = finite(correlate(scores.other[key], does[:1], _norms(scores.other, given))[0])
    if tables.untrained is not None:
        other = {name: values.mean(0, keepdims=True) for name, values in tables.untrained.scores.real.items()}
        turned = tables.untrained.effects[effect].mean(0, keepdims=True)
        controls[UNTRAINED] = finite(correlate(other[key], turned, _norms(other, given))[0])
    return _made(key, effect, given, "embedding", correlate(score, does, norms), n, nulls, controls)


def _picture_nulls(
    tables: HeadTables, key: Key, does: np.ndarray, norms: tuple[np.ndarray, ...], seed: int
) -> dict[str, np.ndarray]:
    pictures = tables.pictures
    nulls = {SHUFFLED: correlate(shuffled(pictures.real[key].mean(0), seed=seed), does, norms)}
    if key in pictures.placebo:
        nulls = {PLACEBO: correlate(pictures.placebo[key], does, norms), **nulls}
    return nulls


def _made(
    key: Key, effect: Effect, given: bool, level: str, values: np.ndarray, n: int, nulls: dict[str, np.ndarray],
    controls: dict[str, float | None],
) -> Score:  # fmt: skip
    summed = {name: Null.of(found.tolist()) for name, found in nulls.items()}
    value = estimate(values, n, undefined=_WHY_GIVEN if given else _WHY)
    larger = [null.mean for name, null in summed.items() if name in _LARGER and null.mean is not None]
    excess = value.value - max(larger) if larger and value.value is not None else None
    return Score(
        measure=measure_name(key[0], effect, given=given), reading=key[1], level=level, estimate=value, n=n,
        unit="images", nulls=summed, controls={EXCESS[level]: excess, **controls},
    )  # fmt: skip
