"""Steering: a feature is added while a model runs, beside directions of equal norm, and what comes out is read."""

__all__ = ["DIRECTIONS", "SteeringSetup", "picture_rows", "steering_study"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from vit_lens.dictionaries import Dictionary, random_dictionary, untrained_control
from vit_lens.errors import StudyError
from vit_lens.studies.findings import StudyResult
from vit_lens.studies.steering.choosing import Pool, best_of, candidates, difference, mean_codes
from vit_lens.studies.steering.kinds import Kind
from vit_lens.studies.steering.scores import DIRECTIONS, Case, Looked, scores_of, tables_of
from vit_lens.studies.steering.targets import Target
from vit_lens.studies.steering.watching import Push, Seen, Watcher

_CHOSEN_FROM = 0  # the first seed of the noises that features are chosen on
_STUDIED_FROM = 1000  # and of those that are studied
_FEATURE, _RANDOM, _MEANS, _UNTRAINED = DIRECTIONS
_NOTES = (
    "A feature is the best of the candidates with most lift, chosen by how much of the target it shows on inputs that "
    "are not studied; random directions and untrained features are the best of as many, chosen alike. The difference "
    "of means is one direction.",
    "Intervals are bootstrap over targets, each with all its noises, averaged over dictionaries. One model: described, "
    "nothing is inferred about others.",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class SteeringSetup:
    """What is steered, and how much is looked at.

    Attributes:
        kind: The model, with what it is to the study.
        dictionaries: Dictionaries of one hook point and the same tokens, by name.
        out: The folder of the study, in which answers are kept.
        targets: What is steered to; some of the kind's.
        n: Inputs that are studied, for each target, each with a noise of its own where there is noise.
        n_chosen: Inputs that features are chosen on.
        n_candidates: Directions of each kind that one is chosen of.
        doses: Strengths.
        dose: The strength of everything else than the curve; one of the doses.
        seed: Of inputs, random directions and resamples.
        progress: Whether a bar is shown.

    Raises:
        StudyError: There are no targets, doses or dictionaries, the dose is none of the doses, or dictionaries are of
            several hook points or of updates.
        DictionaryError: A dictionary is of another model.
    """

    kind: Kind
    dictionaries: Mapping[str, Dictionary]
    out: Path
    targets: tuple[Target, ...]
    n: int = 24
    n_chosen: int = 12
    n_candidates: int = 8
    doses: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)
    dose: float = 0.4
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        if not self.dictionaries or not self.targets:
            raise StudyError("no dictionary or no target; give at least one of each")
        if strange := [target.value for target in self.targets if target not in self.kind.targets]:
            raise StudyError(f"{strange[0]!r} is no target of this kind of model, {self.kind.name}")
        if self.dose not in self.doses or not all(dose > 0 for dose in self.doses):
            raise StudyError(f"dose {self.dose:g} with doses {list(self.doses)}: positive numbers, and one of them")
        several = self.dictionaries.values()
        sites = {one.check(self.kind.model) for one in several}
        if len(sites) > 1 or any(one.origin.stream != "output" for one in several):
            raise StudyError(f"dictionaries of {sorted(sites)}; expected one hook point, and what it holds, no update")
        if len(tokens := {one.origin.tokens for one in several}) > 1:
            raise StudyError(f"dictionaries of the tokens {', '.join(sorted(tokens))}; expected the same of all")
        self.kind.check(self.site)

    @property
    def site(self) -> str:
        """The hook point."""
        return self._first.check(self.kind.model)

    @property
    def _first(self) -> Dictionary:
        return next(iter(self.dictionaries.values()))

    @property
    def watcher(self) -> Watcher:
        """What runs and looks."""
        return Watcher(watched=self.kind, dictionary=self._first, folder=self.out / "answers")

    @cached_property
    def drawer(self) -> Watcher | None:
        """What draws and looks beside it; None where nothing does."""
        pictures = self.kind.pictures
        return None if pictures is None else Watcher(
            watched=pictures, dictionary=self._first, folder=self.out / "pictures"
        )  # fmt: skip

    def generator(self, *stream: int) -> np.random.Generator:
        """Return random numbers of the setup's seed and a stream of their own."""
        return np.random.default_rng([self.seed, *stream])

    def number(self, target: Target) -> int:
        """Return the number of a target among all of its kind."""
        return self.kind.targets.index(target)

    def windows(self, target: Target) -> dict[str, tuple[int, ...]]:
        """Return the steps that are steered, by window."""
        return self.kind.windows(self.generator(3, self.number(target)))

    def inputs(self, target: Target) -> Mapping[str, Sequence[Any]]:
        """Return the inputs that are studied."""
        return self.kind.inputs(target, self.n, self.generator(2, self.number(target)), studied=True)

    def chosen_inputs(self, target: Target) -> Sequence[Any]:
        """Return the inputs that directions are chosen on, which have not the target."""
        found = self.kind.inputs(target, self.n_chosen, self.generator(1, self.number(target)), studied=False)
        return found[self.kind.plan.relations[0]]

    @property
    def seeds(self) -> list[int]:
        """The noises that are studied."""
        return list(range(_STUDIED_FROM, _STUDIED_FROM + self.n))

    @property
    def chosen_seeds(self) -> list[int]:
        """The noises that directions are chosen on."""
        return list(range(_CHOSEN_FROM, _CHOSEN_FROM + self.n_chosen))

    @cached_property
    def looked(self) -> list[list[Looked]]:
        """What is seen, by dictionary and target; looked at where it was not kept."""
        return _look_at_all(self)

    def describe(self) -> dict[str, Any]:
        """Return what a result must carry of its setup."""
        return {
            **self.kind.describe(), "steered": self.kind.name, "site": self.site, "tokens": self._first.origin.tokens,
            "dictionaries": {name: one.origin.learnt for name, one in self.dictionaries.items()}, "seed": self.seed,
        }  # fmt: skip


def steering_study(setup: SteeringSetup, *, command: str | None = None) -> StudyResult:
    """Steer to every target with a feature of every dictionary and with its controls, and look at what comes out.

    Args:
        setup: The setup.
        command: The command that makes this result again; None where there is none.

    Raises:
        StudyError: An answer that was kept is damaged.
    """
    plan, same = setup.kind.plan, _same_at_zero(setup)
    options = {
        "targets": [target.value for target in setup.targets], "n": setup.n, "n_chosen": setup.n_chosen,
        "n_candidates": setup.n_candidates, "doses": list(setup.doses), "dose": setup.dose, **setup.kind.options(),
    }  # fmt: skip
    first = next(iter(setup.dictionaries.values()))
    return StudyResult(
        study="steering", setup=setup.describe(), options=options, command=command,
        notes=(*setup.kind.notes(first), *_NOTES), scores=scores_of(setup.looked, plan, setup.dose, same, setup.seed),
        tables=tables_of(setup.looked, plan, setup.doses, setup.dose),
    )  # fmt: skip


def picture_rows(setup: SteeringSetup, target: Target) -> dict[str, list[UInt8[np.ndarray, "height width 3"]]]:
    """Return one picture by direction and dose, of the first input and dictionary; the first of each is not steered.

    Args:
        setup: The setup.
        target: One of its targets.

    Returns:
        The rows; empty where nothing draws.
    """
    looked = next(one for one in setup.looked[0] if one.target == target)
    plan, rows = setup.kind.plan, {}
    for direction in DIRECTIONS:
        cases = [plan.plain(), *(plan.at(direction, dose) for dose in setup.doses)]
        rows[direction] = [_first_picture(setup, looked, case) for case in cases]
    return {} if any(one is None for row in rows.values() for one in row) else rows


def _first_picture(setup: SteeringSetup, looked: Looked, case: Case) -> Any:
    if looked.seen[case].first is not None or setup.drawer is None:
        return looked.seen[case].first
    inputs = setup.inputs(looked.target)[case.prompt][:1]
    return setup.drawer.see(inputs, setup.seeds[:1], _push(setup, looked.target, looked.directions, case)).first


def _look_at_all(setup: SteeringSetup) -> list[list[Looked]]:
    bar = tqdm(total=len(setup.dictionaries) * len(setup.targets), desc="steering", disable=not setup.progress)
    found = []
    for name, dictionary in setup.dictionaries.items():
        pool = setup.kind.pool(dictionary, setup.chosen_seeds)
        untrained = untrained_control(dictionary, pool.source, seed=setup.seed)
        codes = {kind: mean_codes(one, pool) for kind, one in ((_FEATURE, dictionary), (_UNTRAINED, untrained))}
        found.append([])
        for target in setup.targets:
            directions, features = _choose(setup, target, dictionary, untrained, codes, pool)
            found[-1].append(_look(setup, name, target, directions, features, pool))
            bar.update()
    bar.close()
    return found


def _same_at_zero(setup: SteeringSetup) -> list[bool]:
    """Say of outputs of each dictionary at strength 0 whether they are those without steering, to the last bit."""
    same = []
    for one in (row[0] for row in setup.looked):
        inputs = setup.inputs(one.target)[setup.kind.plan.relations[0]][: setup.n_chosen]
        seeds = setup.seeds[: len(inputs)]
        zero = Push(one.directions[_FEATURE], 0.0, setup.windows(one.target)["early"])
        pairs = zip(*(setup.watcher.run(inputs, seeds, push) for push in (None, zero)), strict=True)
        same += [bool((plain == steered).all()) for plain, steered in pairs]
    return same


def _choose(
    setup: SteeringSetup, target: Target, dictionary: Dictionary, untrained: Dictionary, codes: Mapping[str, Tensor],
    pool: Pool,
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:  # fmt: skip
    """Return the direction of each kind for a target, and which features they are."""
    inputs, steps = setup.chosen_inputs(target), setup.windows(target)["early"]

    def best(directions: Sequence[Tensor]) -> tuple[int, list[float]]:
        return best_of(setup.watcher, target, directions, inputs, setup.chosen_seeds, setup.dose, steps)

    directions: dict[str, Tensor] = {_MEANS: difference(pool, target)}
    seed = int(setup.generator(4, setup.number(target)).integers(2**31))
    random = random_dictionary(dictionary.d, setup.n_candidates, k=1, seed=seed).W_dec
    directions[_RANDOM] = random[best(list(random))[0]]
    features: dict[str, dict[str, Any]] = {}
    for kind, one in ((_FEATURE, dictionary), (_UNTRAINED, untrained)):
        some = candidates(codes[kind], pool, target, setup.n_candidates)
        chosen, seen = best([one.W_dec[index] for index, _ in some])
        directions[kind] = one.direction(some[chosen][0])
        features[kind] = {"feature": some[chosen][0], "lift": some[chosen][1], "seen when chosen": seen[chosen]}
    return directions, features


def _look(
    setup: SteeringSetup, name: str, target: Target, directions: Mapping[str, Tensor],
    features: Mapping[str, Mapping[str, Any]], pool: Pool,
) -> Looked:  # fmt: skip
    """Look at all of a target."""
    plan, inputs, steps = setup.kind.plan, setup.inputs(target), setup.windows(target)["early"]

    def see(watcher: Watcher, case: Case) -> Seen:
        return watcher.see(inputs[case.prompt], setup.seeds, _push(setup, target, directions, case))

    seen = {case: see(setup.watcher, case) for case in plan.cases(setup.doses, setup.dose)}
    drawn: dict[Case, Seen] = {}
    if setup.drawer is not None:
        drawn = {case: see(setup.drawer, case) for case in (plan.plain(), *plan.shown(setup.dose).values())}
    sides = {}
    for kind in (_FEATURE, _RANDOM):
        push = Push(directions[kind], setup.dose, steps)
        generator = setup.generator(6, setup.number(target))
        if found := setup.kind.sides(setup.watcher, target, push, inputs, setup.seeds, pool, generator):
            sides[kind] = found
    return Looked(
        dictionary=name, target=target, directions=directions, features=features, plain=plan.plain(), seen=seen,
        sides=sides, drawn=drawn,
    )  # fmt: skip


def _push(setup: SteeringSetup, target: Target, directions: Mapping[str, Tensor], case: Case) -> Push | None:
    if case.direction is None:
        return None
    return Push(directions[case.direction], case.dose, setup.windows(target)[case.window])
