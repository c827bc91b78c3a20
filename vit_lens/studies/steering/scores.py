"""What was seen, as numbers: effects less those of random directions, what was kept, what was no scene."""

__all__ = [
    "AVERAGED", "DIRECTIONS", "EFFECT", "HEADLINES", "KEPT", "LOGIT", "NEGATIVE", "NO_SCENE", "PATCHES", "PLACE",
    "PROMPT", "RELATED", "TIME", "WINDOWS", "ZERO", "Case", "Looked", "Plan", "scores_of", "tables_of",
]  # fmt: skip

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vit_lens.estimates import Estimate, bootstrap
from vit_lens.studies.findings import Null, Score
from vit_lens.studies.steering.targets import Target
from vit_lens.studies.steering.watching import Seen

DIRECTIONS = ("feature", "random direction", "difference of means", "untrained dictionary")
EFFECT = "how often the target is seen, less with a random direction"
LOGIT = "logit of the target above other values, less with a random direction"
KEPT = "share of the other attributes that is kept"
NO_SCENE = "share of pictures that are no scene"
RELATED = "effect where the prompt is silent or agrees, less where it conflicts"
PROMPT = "effect by what the prompt says"
WINDOWS = "effect by the steps that are steered"
TIME = "effect of early steps, less that of others"
PLACE = "effect inside the part that is steered, less outside"
PATCHES = "effect where the patches of what is replaced are steered, less as many others"
NEGATIVE = "how often the target that the prompt says is gone, less with a random direction"
ZERO = "share of pictures at strength 0 that are the same to the last bit"
_ZERO_EMBEDDINGS = ZERO.replace("pictures", "embeddings")
HEADLINES = (EFFECT, LOGIT, KEPT, NO_SCENE, RELATED, TIME, PLACE, PATCHES, NEGATIVE, ZERO, _ZERO_EMBEDDINGS)
AVERAGED = ("doses",)
"""The tables whose numbers are averaged over encoders."""
_FEATURE, _RANDOM = DIRECTIONS[:2]
_SWAPS = 200
Values = Float[np.ndarray, "target noise"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured of a kind of model.

    Attributes:
        level: Where the target is read: ``embedding`` or ``decoded``.
        relations: What an input may say of the target; the first is that of the headlines.
        edit: What editing the input is called: ``agrees`` is such an input.
        outputs: What comes out, in words.
        windows: Which steps are steered; the first is that of the headlines.
        place: The measure of where is steered; None for none.
        rejects: Whether there are outputs in which nothing is read.
        logit: Whether there is more to read than whether the target is there.
    """

    level: str
    relations: tuple[str, ...]
    edit: str
    outputs: str
    windows: tuple[str, ...] = ("early",)
    place: str | None = None
    rejects: bool = True
    logit: bool = False

    def plain(self) -> "Case":
        """Return the case of no steering, of inputs that have not the target."""
        return Case(self.relations[0])

    def at(self, direction: str, dose: float) -> "Case":
        """Return the case of a direction at a dose, of the same inputs."""
        return Case(self.relations[0], direction, dose)

    def shown(self, dose: float) -> dict[str, "Case"]:
        """Return what is compared at one dose, by name: every direction, and editing the input."""
        return {**{each: self.at(each, dose) for each in DIRECTIONS}, self.edit: Case("agrees")}

    def cases(self, doses: Sequence[float], dose: float) -> list["Case"]:
        """Return all that is looked at: the curve, and everything else at one dose."""
        base, both = self.relations[0], (_FEATURE, _RANDOM)
        found = [self.plain(), Case("agrees")]
        found += [self.at(direction, one) for direction in DIRECTIONS for one in doses]
        found += [Case(relation, direction, dose) for relation in self.relations[1:] for direction in both]
        found += [Case(base, direction, dose, window) for window in self.windows[1:] for direction in both]
        return found + [Case("agrees", direction, -dose) for direction in both]


class Case(NamedTuple):
    """What is looked at for each input.

    Attributes:
        prompt: What the input says of the target.
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
        plain: What is not steered.
        seen: What was seen, by case.
        sides: By direction, how much of the target is seen by place, ``inside`` and ``outside``; empty for no places.
        drawn: What was seen in pictures beside that, by case; empty where nothing else is drawn.
    """

    dictionary: str
    target: Target
    directions: Mapping[str, Tensor]
    features: Mapping[str, Mapping[str, Any]]
    plain: Case
    seen: Mapping[Case, Seen]
    sides: Mapping[str, Mapping[str, Float[np.ndarray, " noise"]]]
    drawn: Mapping[Case, Seen] = field(default_factory=dict)

    def shows(self, case: Case) -> Float[np.ndarray, " noise"]:
        """Return 1 where the target is seen, else 0."""
        return self.seen[case].shows(self.target).astype(float)

    def keeps(self, case: Case) -> Float[np.ndarray, " noise"]:
        """Return the share of the other attributes that the same input has without steering, with the same noise."""
        return self.seen[case].keeps(self.seen[self.plain], self.target)

    def shown(self, case: Case) -> Float[np.ndarray, " noise"]:
        """Return how much of the target is seen."""
        return self.seen[case].shown(self.target)

    def gone(self, case: Case) -> Float[np.ndarray, " noise"]:
        """Return 1 where there is a scene without the target, else 0."""
        seen = self.seen[case]
        return (seen.is_scene & ~seen.shows(self.target)).astype(float)


@dataclass(frozen=True, eq=False)
class _Numbers:
    """Makes arrays and scores of what was seen, by dictionary and target."""

    looked: Sequence[Sequence[Looked]]
    level: str
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
            measure=measure, reading=reading, level=self.level, estimate=self.interval(values), n=len(values),
            unit="targets", nulls={"swapped at random": self.swapped(values)} if paired else {},
            controls={name.replace("_", " "): value for name, value in controls.items()},
        )  # fmt: skip


def scores_of(
    looked: Sequence[Sequence[Looked]], plan: Plan, dose: float, same: Sequence[bool], seed: int
) -> tuple[Score, ...]:
    """Return the scores of what was seen.

    Args:
        looked: By dictionary and target.
        plan: What is measured.
        dose: The dose of the headlines.
        same: Of outputs at strength 0, whether they are those without steering.
        seed: Of resamples.
    """
    make = _Numbers(looked, plan.level, seed)
    found = [*_effects(make, plan, dose)]
    if plan.rejects:
        for name, case in {"without steering": plan.plain(), **plan.shown(dose)}.items():
            found.append(make.score(NO_SCENE, name, make.of(lambda one, case=case: 1.0 - one.seen[case].is_scene)))
    found += [*_by_prompt(make, plan, dose), *_by_time(make, plan, dose)]
    if plan.place is not None and all(one.sides for row in looked for one in row):
        inside, outside = (
            make.of(lambda one, at=at: one.sides[_FEATURE][at] - one.sides[_RANDOM][at]) for at in ("inside", "outside")
        )
        shares = {"inside": float(inside.mean()), "outside": float(outside.mean())}
        found.append(make.score(plan.place, "feature", inside - outside, paired=True, **shares))
    found.append(_negative(make, dose))
    zero = Estimate(float(np.mean(same)), why="a count")
    measure = ZERO if plan.outputs == "pictures" else ZERO.replace("pictures", plan.outputs)
    found.append(
        Score(measure=measure, reading="feature", level=plan.level, estimate=zero, n=len(same), unit=plan.outputs)
    )
    if all(one.drawn for row in looked for one in row):
        drawn = [[replace(one, seen=one.drawn) for one in row] for row in looked]
        found += _effects(_Numbers(drawn, "decoded", seed), plan, dose)
    return tuple(found)


def _effects(make: _Numbers, plan: Plan, dose: float) -> Iterator[Score]:
    """Give how much more of the target is seen with each direction than with a random one, and what else is kept."""
    cases = plan.shown(dose)
    read = {EFFECT: Looked.shows, **({LOGIT: Looked.shown} if plan.logit else {})}
    for measure, value in read.items():
        by_name = {name: make.of(lambda one, case=case, value=value: value(one, case)) for name, case in cases.items()}
        plain, random = float(make.of(lambda one, value=value: value(one, plan.plain())).mean()), by_name[_RANDOM]
        for name, own in by_name.items():
            if name != _RANDOM:
                shares = {"with_a_random_direction": float(random.mean()), "without_steering": plain}
                yield make.score(measure, name, own - random, paired=True, seen=float(own.mean()), **shares)
    for name, case in cases.items():
        yield make.score(KEPT, name, make.of(lambda one, case=case: one.keeps(case)))


def _by_prompt(make: _Numbers, plan: Plan, dose: float) -> Iterator[Score]:
    by_prompt = {each: make.effect(each, dose) for each in plan.relations}
    for each, values in by_prompt.items():
        yield make.score(PROMPT, each, values, paired=True)
    if "silent" not in by_prompt:
        return
    related = (by_prompt["silent"] + by_prompt["agrees"]) / 2
    yield make.score(RELATED, "silent and agrees, mean", related - by_prompt["conflicts"], paired=True)
    for each in ("silent", "agrees"):
        yield make.score(RELATED, each, by_prompt[each] - by_prompt["conflicts"], paired=True)


def _by_time(make: _Numbers, plan: Plan, dose: float) -> Iterator[Score]:
    if len(plan.windows) < 2:
        return
    by_time = {each: make.effect(plan.relations[0], dose, each) for each in plan.windows}
    for each, values in by_time.items():
        yield make.score(WINDOWS, each, values, paired=True)
    first, *others = plan.windows
    for each in others:
        yield make.score(TIME, f"less {each} steps", by_time[first] - by_time[each], paired=True)


def _negative(make: _Numbers, dose: float) -> Score:
    """Return how often the target goes away where the input has it."""
    cases = {each: Case("agrees", each, -dose) for each in (_FEATURE, _RANDOM)}
    gone = {each: make.of(lambda one, case=case: one.gone(case)) for each, case in cases.items()}
    away = {each: 1 - float(make.shows(case).mean()) for each, case in cases.items()}
    shares = {
        "gone": float(gone[_FEATURE].mean()), "with_a_random_direction": float(gone[_RANDOM].mean()),
        "not_seen,_no_scene_included": away[_FEATURE], "the_same_with_a_random_direction": away[_RANDOM],
    }  # fmt: skip
    return make.score(NEGATIVE, "feature", gone[_FEATURE] - gone[_RANDOM], paired=True, **shares)


def tables_of(
    looked: Sequence[Sequence[Looked]], plan: Plan, doses: Sequence[float], dose: float
) -> dict[str, list[dict[str, Any]]]:
    """Return tables: shares by direction and dose, of all dictionaries and of each; and of each target."""
    cases = [plan.plain(), Case("agrees"), *(plan.at(direction, one) for direction in DIRECTIONS for one in doses)]
    by_dictionary = [_of_dose(row, plan, case, dictionary=row[0].dictionary) for row in looked for case in cases]
    every = [one for row in looked for one in row]
    shown = {"without steering": plan.plain(), **plan.shown(dose)}
    by_target = [
        {
            "dictionary": one.dictionary, "kind": one.target.kind, "target": one.target.value,
            **one.features[_FEATURE],
            **{f"seen, {name}": _mean([one.shows(case)]) for name, case in shown.items()},
        }
        for one in every
    ]  # fmt: skip
    return {
        "doses": [_of_dose(every, plan, case) for case in cases],
        "dictionaries": by_dictionary,
        "targets": by_target,
    }


def _of_dose(row: Sequence[Looked], plan: Plan, case: Case, **names: str) -> dict[str, Any]:
    label = case.direction or {plan.relations[0]: "without steering", "agrees": plan.edit}[case.prompt]
    found: dict[str, Any] = {
        **names,
        "direction": label,
        "dose": case.dose,
        "seen": _mean([one.shows(case) for one in row]),
    }
    if plan.rejects:
        found["no scene"] = _mean([1.0 - one.seen[case].is_scene for one in row])
    if plan.logit:
        found["logit"] = _mean([one.shown(case) for one in row])
    return found | {"kept": _mean([one.keeps(case) for one in row])}


def _mean(values: Sequence[np.ndarray]) -> float:
    return round(float(np.mean(values)), 5)
