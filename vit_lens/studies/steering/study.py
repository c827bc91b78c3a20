"""Steering: a feature is added while pictures are drawn, beside directions of equal norm; the exact judge looks."""

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
from vit_lens.diffusion import HookedDiffusion
from vit_lens.errors import StudyError
from vit_lens.mini import still_life
from vit_lens.studies.findings import StudyResult
from vit_lens.studies.steering.choosing import Pool, best_of, candidates, difference, make_pool
from vit_lens.studies.steering.scores import DIRECTIONS, Case, Looked, scores_of, tables_of
from vit_lens.studies.steering.targets import RELATIONS, SIDES, TARGETS, Target, prompts_for
from vit_lens.studies.steering.watching import Push, Seen, Watcher

_CHOSEN_FROM = 0  # the first seed of the noises that features are chosen on
_STUDIED_FROM = 1000  # and of those that are studied
_FEATURE, _RANDOM, _MEANS, _UNTRAINED = DIRECTIONS
_NOTES = (
    "Strength is in units of the mean token norm at the hook point and step, of each picture for itself; every "
    "direction has length 1. The first few steps are steered unless something else is said: over all steps random "
    "directions destroy the scene on the development model.",
    "A feature is the best of the candidates with most lift, chosen by how often it shows the target on noises that "
    "are not studied; random directions and untrained features are the best of as many, chosen alike. The difference "
    "of means is one direction.",
    "A picture whose residual is beyond the limit is no scene, and does not show the target. A target that is to go "
    "away is gone where there is a scene without it.",
    "Intervals are bootstrap over targets, each with all its noises, averaged over dictionaries. One model: described, "
    "nothing is inferred about others.",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class SteeringSetup:
    """What is steered, and how much is drawn.

    Attributes:
        model: The model, of the embedded world of still lifes.
        dictionaries: Dictionaries of one hook point of its image stream, by name.
        limit: The residual above which a picture is no scene.
        out: The folder of the study, in which answers are kept.
        targets: What is steered to.
        n: Noises that are studied, for each target.
        n_chosen: Noises that features are chosen on.
        n_candidates: Directions of each kind that one is chosen of.
        doses: Strengths.
        dose: The strength of everything else than the curve; one of the doses.
        window: How many steps are steered.
        objects: The numbers of the objects that lift is measured on; None for all.
        seed: Of prompts, random directions and resamples.
        progress: Whether a bar is shown.

    Raises:
        StudyError: There are no targets, doses or dictionaries, the dose is none of the doses, or dictionaries are of
            several hook points or of updates.
    """

    model: HookedDiffusion
    dictionaries: Mapping[str, Dictionary]
    limit: float
    out: Path
    targets: tuple[Target, ...] = TARGETS
    n: int = 24
    n_chosen: int = 12
    n_candidates: int = 8
    doses: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)
    dose: float = 0.4
    window: int = 4
    objects: tuple[int, ...] | None = None
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        if not self.dictionaries or not self.targets:
            raise StudyError("no dictionary or no target; give at least one of each")
        if self.dose not in self.doses or not all(dose > 0 for dose in self.doses):
            raise StudyError(f"dose {self.dose:g} with doses {list(self.doses)}: positive numbers, and one of them")
        sites = {one.check(self.model) for one in self.dictionaries.values()}
        if len(sites) > 1 or any(one.origin.stream != "output" for one in self.dictionaries.values()):
            raise StudyError(f"dictionaries of {sorted(sites)}; expected one hook point, and what it holds, no update")
        if self.model.is_text(self.site):
            raise StudyError(f"{self.site} is of the text; expected a hook point of the image")
        if not 0 < 2 * self.window <= self.n_steps:
            raise StudyError(f"window {self.window} of {self.n_steps} steps: early and late ones would overlap")

    @property
    def site(self) -> str:
        """The hook point."""
        return next(iter(self.dictionaries.values())).check(self.model)

    @cached_property
    def n_steps(self) -> int:
        """How many steps a picture takes."""
        return self.model.run_settings()["steps"]

    @property
    def watcher(self) -> Watcher:
        """What draws and looks."""
        return Watcher(model=self.model, site=self.site, limit=self.limit, folder=self.out / "answers")

    def generator(self, *stream: int) -> np.random.Generator:
        """Return random numbers of the setup's seed and a stream of their own."""
        return np.random.default_rng([self.seed, *stream])

    def windows(self, target: Target) -> dict[str, tuple[int, ...]]:
        """Return the steps that are steered, early, late and at random."""
        some = self.generator(3, TARGETS.index(target)).choice(self.n_steps, self.window, replace=False)
        return {
            "early": tuple(range(self.window)), "late": tuple(range(self.n_steps - self.window, self.n_steps)),
            "random": tuple(sorted(some.tolist())),
        }  # fmt: skip

    def prompts(self, target: Target) -> dict[str, list[str]]:
        """Return the prompts that are studied."""
        return prompts_for(target, self.n, self.generator(2, TARGETS.index(target)))

    @property
    def seeds(self) -> list[int]:
        """The noises that are studied."""
        return list(range(_STUDIED_FROM, _STUDIED_FROM + self.n))

    @cached_property
    def looked(self) -> list[list[Looked]]:
        """What is seen, by dictionary and target; drawn where it was not kept."""
        return _look_at_all(self)

    def describe(self) -> dict[str, Any]:
        """Return what a result must carry of its setup."""
        return {
            "encoder": self.model.model_id, "fingerprint": self.model.fingerprint, "site": self.site,
            "dictionaries": {name: one.origin.learnt for name, one in self.dictionaries.items()}, "judge": "exact",
            "residual_limit": self.limit, "settings": self.model.run_settings(), "seed": self.seed,
        }  # fmt: skip


def steering_study(setup: SteeringSetup, *, command: str | None = None) -> StudyResult:
    """Steer to every target with a feature of every dictionary and with its controls, and look at the pictures.

    Args:
        setup: The setup.
        command: The command that makes this result again; None where there is none.

    Raises:
        StudyError: An answer that was kept is damaged.
    """
    same = _same_at_zero(setup)
    options = {
        "targets": [target.value for target in setup.targets], "n": setup.n, "n_chosen": setup.n_chosen,
        "n_candidates": setup.n_candidates, "doses": list(setup.doses), "dose": setup.dose, "window": setup.window,
    }  # fmt: skip
    return StudyResult(
        study="steering", setup=setup.describe(), options=options, command=command, notes=_NOTES,
        scores=scores_of(setup.looked, setup.dose, same, setup.seed),
        tables=tables_of(setup.looked, setup.doses, setup.dose),
    )  # fmt: skip


def picture_rows(setup: SteeringSetup, target: Target) -> dict[str, list[UInt8[np.ndarray, "height width 3"]]]:
    """Return one picture by direction and dose, of the first noise and dictionary; the first of each is not steered.

    Args:
        setup: The setup.
        target: One of its targets.
    """
    seen = next(one for one in setup.looked[0] if one.target == target).seen
    return {
        direction: [seen[Case("silent")].first, *(seen[Case("silent", direction, dose)].first for dose in setup.doses)]
        for direction in DIRECTIONS
    }


def _look_at_all(setup: SteeringSetup) -> list[list[Looked]]:
    bar = tqdm(total=len(setup.dictionaries) * len(setup.targets), desc="steering", disable=not setup.progress)
    found = []
    for name in setup.dictionaries:
        pool = _pool(setup, name)
        found.append([])
        for target in setup.targets:
            found[-1].append(_look(setup, name, target, pool))
            bar.update()
    bar.close()
    return found


def _same_at_zero(setup: SteeringSetup) -> list[bool]:
    """Say of pictures of each dictionary at strength 0 whether they are those without steering, to the last bit."""
    same = []
    for one in (row[0] for row in setup.looked):
        prompts = setup.prompts(one.target)["silent"][: setup.n_chosen]
        seeds = setup.seeds[: len(prompts)]
        zero = Push(one.directions[_FEATURE], 0.0, setup.windows(one.target)["early"])
        pairs = zip(*(setup.watcher.draw(prompts, seeds, push) for push in (None, zero)), strict=True)
        same += [bool((plain == steered).all()) for plain, steered in pairs]
    return same


def _pool(setup: SteeringSetup, name: str) -> Pool:
    steps = setup.dictionaries[name].origin.at_steps or range(setup.window)
    objects = range(still_life.N_OBJECTS) if setup.objects is None else setup.objects
    return make_pool(setup.watcher, steps, range(_CHOSEN_FROM, _CHOSEN_FROM + setup.n_chosen), objects)


def _chosen(setup: SteeringSetup, target: Target, directions: Sequence[Tensor]) -> tuple[int, list[float]]:
    """Return which of several directions is best on noises that are not studied, and how good each is."""
    prompts = prompts_for(target, setup.n_chosen, setup.generator(1, TARGETS.index(target)))["silent"]
    seeds = range(_CHOSEN_FROM, _CHOSEN_FROM + setup.n_chosen)
    return best_of(setup.watcher, target, directions, prompts, seeds, setup.dose, setup.windows(target)["early"])


def _look(setup: SteeringSetup, name: str, target: Target, pool: Pool) -> Looked:
    """Choose directions for a target, and look at all of its pictures."""
    dictionary = setup.dictionaries[name]
    untrained = untrained_control(dictionary, pool.source, seed=setup.seed)
    d, number = dictionary.d, TARGETS.index(target)
    directions: dict[str, Tensor] = {_MEANS: difference(pool, target)}
    random = random_dictionary(d, setup.n_candidates, k=1, seed=int(setup.generator(4, number).integers(2**31))).W_dec
    directions[_RANDOM] = random[_chosen(setup, target, list(random))[0]]
    features: dict[str, dict[str, Any]] = {}
    for kind, one in ((_FEATURE, dictionary), (_UNTRAINED, untrained)):
        some = candidates(one, pool, target, setup.n_candidates)
        best, shares = _chosen(setup, target, [one.W_dec[index] for index, _ in some])
        directions[kind] = one.direction(some[best][0])
        features[kind] = {"feature": some[best][0], "lift": some[best][1], "seen when chosen": shares[best]}
    seen = {case: _watch(setup, target, directions, case) for case in _cases(setup)}
    sides = {kind: _at_sides(setup, target, directions[kind], pool.n_positions) for kind in (_FEATURE, _RANDOM)}
    return Looked(dictionary=name, target=target, directions=directions, features=features, seen=seen, sides=sides)


def _cases(setup: SteeringSetup) -> list[Case]:
    both, dose = (_FEATURE, _RANDOM), setup.dose
    found = [Case("silent"), Case("agrees")]
    found += [Case("silent", direction, one) for direction in DIRECTIONS for one in setup.doses]
    found += [Case(relation, direction, dose) for relation in RELATIONS[1:] for direction in both]
    found += [Case("silent", direction, dose, window) for window in ("late", "random") for direction in both]
    return found + [Case("agrees", direction, -dose) for direction in both]


def _watch(setup: SteeringSetup, target: Target, directions: Mapping[str, Tensor], case: Case) -> Seen:
    push = None
    if case.direction is not None:
        push = Push(directions[case.direction], case.dose, setup.windows(target)[case.window])
    return setup.watcher.see(setup.prompts(target)[case.prompt], setup.seeds, push)


def _at_sides(setup: SteeringSetup, target: Target, direction: Tensor, n_positions: int) -> dict[str, np.ndarray]:
    """Return where the target is seen when one object of two is steered: in the part of the picture, and outside."""
    prompts, inside, outside = setup.prompts(target)["pair"], np.zeros(setup.n), np.zeros(setup.n)
    side = round(n_positions**0.5)  # pictures are as wide as tall
    for k, half in enumerate(SIDES):
        rows = list(range(k, setup.n, len(SIDES)))
        if not rows:
            continue
        top, left, bottom, right = (round(share * side) for share in half.half)
        push = Push(direction, setup.dose, setup.windows(target)["early"], (top, left, bottom, right))
        seen = setup.watcher.see([prompts[i] for i in rows], [setup.seeds[i] for i in rows], push)
        inside[rows], outside[rows] = seen.shows(target, half.place), seen.shows(target, 1 - half.place)
    return {"inside": inside, "outside": outside}
