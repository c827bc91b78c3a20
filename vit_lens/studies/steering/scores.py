"""What was seen, as numbers: effects less those of random directions, what was kept, what was no scene."""

__all__ = [
    "DIRECTIONS", "EDIT", "EFFECT", "HEADLINES", "KEPT", "NEGATIVE", "NO_SCENE", "PLACE", "PROMPT", "RELATED", "TIME",
    "WINDOWS", "ZERO", "Case", "Looked", "scores_of", "tables_of",
]  # fmt: skip

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vit_lens.estimates import Estimate, bootstrap
from vit_lens.studies.findings import Null, Score
from vit_lens.studies.steering.targets import RELATIONS, Target
from vit_lens.studies.steering.watching import Seen

DIRECTIONS = ("feature", "random direction", "difference of means", "untrained dictionary")
EDIT = "prompt that says it"
EFFECT = "how often the target is seen, less with a random direction"
KEPT = "share of the other attributes that is kept"
NO_SCENE = "share of pictures that are no scene"
RELATED = "effect where the prompt is silent or agrees, less where it conflicts"
PROMPT = "effect by what the prompt says"
WINDOWS = "effect by the steps that are steered"
TIME = "effect of early steps, less that of others"
PLACE = "effect inside the part that is steered, less outside"
NEGATIVE = "how often the target that the prompt says is gone, less with a random direction"
ZERO = "share of pictures at strength 0 that are the same to the last bit"
HEADLINES = (EFFECT, KEPT, NO_SCENE, RELATED, TIME, PLACE, NEGATIVE, ZERO)
_FEATURE, _RANDOM = DIRECTIONS[:2]
_SWAPS = 200
Values = Float[np.ndarray, "target noise"]


class Case(NamedTuple):
    """What is drawn for each noise.

    Attributes:
        prompt: What the prompt says of the target.
        direction: Which direction is added; None for none.
        dose: How much.
        window: At which steps.
    """

    prompt: str
    direction: str | None = None
    dose: float = 0.0
    window: str = "early"


@dataclass(frozen=True, eq=False, kw_only=True)
class Looked:
    """What was seen of a target, with a dictionary.

    Attributes:
        dictionary: The dictionary's name.
        target: The target.
        directions: What was added, by name.
        features: Which features they are, with their lift, of those that are features.
        seen: What was seen, by case.
        sides: Of scenes of two objects, by direction, whether the target is seen in the part that is steered
            (``inside``) and ``outside`` of it.
    """

    dictionary: str
    target: Target
    directions: Mapping[str, Tensor]
    features: Mapping[str, Mapping[str, Any]]
    seen: Mapping[Case, Seen]
    sides: Mapping[str, Mapping[str, Float[np.ndarray, " noise"]]]

    def shows(self, case: Case) -> Float[np.ndarray, " noise"]:
        """Return 1 where the target is seen, else 0."""
        return self.seen[case].shows(self.target).astype(float)

    def keeps(self, case: Case) -> Float[np.ndarray, " noise"]:
        """Return the share of the other attributes that the silent prompt has without steering, with the same noise."""
        return self.seen[case].keeps(self.seen[Case("silent")], self.target)

    def gone(self, case: Case) -> Float[np.ndarray, " noise"]:
        """Return 1 where there is a scene without the target, else 0."""
        seen = self.seen[case]
        return (seen.is_scene & ~seen.shows(self.target)).astype(float)


@dataclass(frozen=True, eq=False)
class _Numbers:
    """Makes arrays and scores of what was seen, by dictionary and target."""

    looked: Sequence[Sequence[Looked]]
    seed: int

    def of(self, value: Callable[[Looked], np.ndarray]) -> Values:
        """Return a value by target and noise, mean over dictionaries."""
        return np.mean([[value(one) for one in row] for row in self.looked], axis=0)

    def shows(self, case: Case) -> Values:
        return self.of(lambda one: one.shows(case))

    def effect(self, prompt: str, dose: float, window: str = "early", direction: str = _FEATURE) -> Values:
        wanted, other = (self.shows(Case(prompt, each, dose, window)) for each in (direction, _RANDOM))
        return wanted - other

    def interval(self, values: Values) -> Estimate:
        """Return the mean and its interval over targets, each with all its noises."""
        means = values.mean(1)
        return bootstrap(lambda rows: float(means[rows].mean()), len(means), seed=self.seed)

    def swapped(self, differences: Values) -> Null:
        """Return what a mean difference is if the two are swapped at random in each pair of pictures."""
        generator = np.random.default_rng([self.seed, 5])
        signs = generator.choice([-1.0, 1.0], size=(_SWAPS, *differences.shape))
        return Null.of((signs * differences).mean((1, 2)).tolist())

    def score(self, measure: str, reading: str, values: Values, *, paired: bool = False, **controls: float) -> Score:
        return Score(
            measure=measure, reading=reading, level="decoded", estimate=self.interval(values), n=len(values),
            unit="targets", nulls={"swapped at random": self.swapped(values)} if paired else {},
            controls={name.replace("_", " "): value for name, value in controls.items()},
        )  # fmt: skip


def scores_of(looked: Sequence[Sequence[Looked]], dose: float, same: Sequence[bool], seed: int) -> tuple[Score, ...]:
    """Return the scores of what was seen.

    Args:
        looked: By dictionary and target.
        dose: The dose of the headlines.
        same: Of pictures at strength 0, whether they are those without steering.
        seed: Of resamples.
    """
    make, found = _Numbers(looked, seed), []
    plain = float(make.shows(Case("silent")).mean())
    edited, random = make.shows(Case("agrees")), make.shows(Case("silent", _RANDOM, dose))
    effects = {each: make.effect("silent", dose, direction=each) for each in DIRECTIONS if each != _RANDOM}
    for name, effect in {**effects, EDIT: edited - random}.items():
        seen = float((effect + random).mean())
        shares = {"seen": seen, "with_a_random_direction": float(random.mean()), "without_steering": plain}
        found.append(make.score(EFFECT, name, effect, paired=True, **shares))
    cases = {**{each: Case("silent", each, dose) for each in DIRECTIONS}, EDIT: Case("agrees")}
    for name, case in cases.items():
        found.append(make.score(KEPT, name, make.of(lambda one, case=case: one.keeps(case))))
    for name, case in {"without steering": Case("silent"), **cases}.items():
        found.append(make.score(NO_SCENE, name, make.of(lambda one, case=case: 1.0 - one.seen[case].is_scene)))
    by_prompt = {each: make.effect(each, dose) for each in RELATIONS}
    found += [make.score(PROMPT, each, values, paired=True) for each, values in by_prompt.items()]
    related = (by_prompt["silent"] + by_prompt["agrees"]) / 2
    found.append(make.score(RELATED, "silent and agrees, mean", related - by_prompt["conflicts"], paired=True))
    found += [
        make.score(RELATED, each, by_prompt[each] - by_prompt["conflicts"], paired=True)
        for each in ("silent", "agrees")
    ]
    by_time = {each: make.effect("silent", dose, each) for each in ("early", "late", "random")}
    found += [make.score(WINDOWS, each, values, paired=True) for each, values in by_time.items()]
    found += [
        make.score(TIME, f"less {each} steps", by_time["early"] - by_time[each], paired=True)
        for each in ("late", "random")
    ]
    inside, outside = (
        make.of(lambda one, at=at: one.sides[_FEATURE][at] - one.sides[_RANDOM][at]) for at in ("inside", "outside")
    )
    shares = {"inside": float(inside.mean()), "outside": float(outside.mean())}
    found.append(make.score(PLACE, "feature", inside - outside, paired=True, **shares))
    gone = {each: make.of(lambda one, each=each: one.gone(Case("agrees", each, -dose))) for each in (_FEATURE, _RANDOM)}
    away = {each: 1 - float(make.shows(Case("agrees", each, -dose)).mean()) for each in (_FEATURE, _RANDOM)}
    shares = {
        "gone": float(gone[_FEATURE].mean()), "with_a_random_direction": float(gone[_RANDOM].mean()),
        "not_seen,_no_scene_included": away[_FEATURE], "the_same_with_a_random_direction": away[_RANDOM],
    }  # fmt: skip
    found.append(make.score(NEGATIVE, "feature", gone[_FEATURE] - gone[_RANDOM], paired=True, **shares))
    zero = Estimate(float(np.mean(same)), why="a count")
    return (
        *found,
        Score(measure=ZERO, reading="feature", level="decoded", estimate=zero, n=len(same), unit="pictures"),
    )


def tables_of(
    looked: Sequence[Sequence[Looked]], doses: Sequence[float], dose: float
) -> dict[str, list[dict[str, Any]]]:
    """Return tables: shares by dictionary, direction and dose; and of each target with each dictionary."""
    by_dose, by_target = [], []
    for row in looked:
        name = row[0].dictionary
        cases = [Case("silent"), Case("agrees")]
        cases += [Case("silent", direction, one) for direction in DIRECTIONS for one in doses]
        for case in cases:
            label = case.direction or {"silent": "without steering", "agrees": EDIT}[case.prompt]
            by_dose.append(
                {
                    "dictionary": name, "direction": label, "dose": case.dose, **_shares(row, case),
                    "kept": _mean([one.keeps(case) for one in row]),
                }
            )  # fmt: skip
        for one in row:
            shown = {"without steering": Case("silent"), EDIT: Case("agrees")}
            shown |= {each: Case("silent", each, dose) for each in DIRECTIONS}
            by_target.append(
                {
                    "dictionary": name, "kind": one.target.kind, "target": one.target.value,
                    **one.features[_FEATURE], **{f"seen, {each}": _mean([one.shows(c)]) for each, c in shown.items()},
                }
            )  # fmt: skip
    return {"doses": by_dose, "targets": by_target}


def _shares(row: Sequence[Looked], case: Case) -> dict[str, float]:
    return {
        "seen": _mean([one.shows(case) for one in row]),
        "no scene": _mean([1.0 - one.seen[case].is_scene for one in row]),
    }


def _mean(values: Sequence[np.ndarray]) -> float:
    return round(float(np.mean(values)), 5)
