"""Denoisers that draw still lifes: their image stream is steered at some steps, and the exact judge looks."""

__all__ = ["Denoisers"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_lens.dictionaries import Dictionary, steer
from vit_lens.diffusion import HookedDiffusion
from vit_lens.errors import StudyError
from vit_lens.mini import still_life
from vit_lens.studies.steering import still_lifes
from vit_lens.studies.steering.choosing import Pool
from vit_lens.studies.steering.kinds import Kind
from vit_lens.studies.steering.scores import PLACE, Plan
from vit_lens.studies.steering.targets import RELATIONS, SIDES, TARGETS, Target, prompts_for
from vit_lens.studies.steering.watching import Push, Watcher


@dataclass(frozen=True, eq=False, kw_only=True)
class Denoisers(Kind):
    """A denoiser of the embedded world of still lifes, of which :class:`Kind` says what is asked.

    Attributes:
        pipeline: The model.
        limit: The residual above which a picture is no scene.
        window: How many steps are steered.
        objects: The numbers of the objects that lift is measured on; None for all.

    Raises:
        StudyError: Early and late steps would overlap.
    """

    name = "denoiser"
    plan = Plan(
        level="decoded", relations=RELATIONS, edit="prompt that says it", outputs="pictures",
        windows=("early", "late", "random"), place=PLACE,
    )  # fmt: skip
    targets = TARGETS

    pipeline: HookedDiffusion
    limit: float
    window: int = 4
    objects: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < 2 * self.window <= self.n_steps:
            raise StudyError(f"window {self.window} of {self.n_steps} steps: early and late ones would overlap")

    @property
    def model(self) -> HookedDiffusion:
        """What is steered."""
        return self.pipeline

    @cached_property
    def n_steps(self) -> int:
        """How many steps a picture takes."""
        return self.model.run_settings()["steps"]

    def describe(self) -> dict[str, Any]:
        """Return the model, the judge and how pictures are drawn."""
        return {
            "encoder": self.model.model_id, "fingerprint": self.model.fingerprint, "judge": "exact",
            "residual_limit": self.limit, "settings": self.model.run_settings(),
        }  # fmt: skip

    def options(self) -> dict[str, Any]:
        """Return how many steps are steered."""
        return {"window": self.window}

    def notes(self, dictionary: Dictionary) -> tuple[str, ...]:
        """Return what is steered, and when."""
        return (
            "Strength is in units of the mean token norm at the hook point and step, of each picture for itself; every "
            "direction has length 1. The first few steps are steered unless something else is said: over all steps "
            "random directions destroy the scene on the development model.",
            "A picture whose residual is beyond the limit is no scene, and does not show the target. A target that is "
            "to go away is gone where there is a scene without it.",
        )

    def check(self, site: str) -> None:
        """Refuse a hook point of the text.

        Raises:
            StudyError: It is such a one.
        """
        if self.model.is_text(site):
            raise StudyError(f"{site} is of the text; expected a hook point of the image")

    # ---- inputs

    def inputs(self, target: Target, n: int, generator: np.random.Generator, *, studied: bool) -> dict[str, list[str]]:
        """Return prompts; those that directions are chosen on have other noises."""
        return prompts_for(target, n, generator)

    def windows(self, generator: np.random.Generator) -> dict[str, tuple[int, ...]]:
        """Return the steps that are steered, early, late and at random."""
        some = generator.choice(self.n_steps, self.window, replace=False)
        return {
            "early": tuple(range(self.window)), "late": tuple(range(self.n_steps - self.window, self.n_steps)),
            "random": tuple(sorted(some.tolist())),
        }  # fmt: skip

    def pool(self, dictionary: Dictionary, seeds: Sequence[int]) -> Pool:
        """Draw every object once, with the seeds in turn, and keep the tokens of the dictionary's steps."""
        site, steps = dictionary.check(self.model), dictionary.origin.at_steps or range(self.window)
        objects = range(still_life.N_OBJECTS) if self.objects is None else self.objects
        scenes = [still_life.Scene("alone", (number,)) for number in objects]
        prompts = [" ".join(["a", *still_life.object_of(number)]) for number in objects]
        _, cache = self.model.run_with_cache(
            prompts, seed=[seeds[k % len(seeds)] for k in range(len(prompts))], names_filter=site,
            at_steps=list(steps), branch="cond", output_type="latent",
        )  # fmt: skip
        x = cache[site].movedim(0, 1).cpu()
        return Pool(list(x.flatten(1, 2)), still_life.codes(scenes)[:, 1:4], x.shape[2])

    # ---- what comes out

    def identity(self, dictionary: Dictionary) -> list[Any]:
        """Return weights, how pictures are drawn, and the hook point."""
        return [self.model.fingerprint, self.model.run_settings(), dictionary.check(self.model)]

    def run(
        self, dictionary: Dictionary, inputs: Sequence[str], seeds: Sequence[int], push: Push | None
    ) -> UInt8[np.ndarray, "picture height width 3"]:
        """Return pictures of the world's own side, one for each prompt and seed."""
        hooks = []
        if push is not None:
            hooks = steer(
                self.model, dictionary.check(self.model), push.direction, push.strength, at_steps=list(push.steps),
                region=push.where, branch="cond",
            )  # fmt: skip
        made = []
        with self.model.hooks(fwd_hooks=hooks):
            for start in range(0, len(inputs), still_lifes.AT_ONCE):
                some = slice(start, start + still_lifes.AT_ONCE)
                made.append(still_lifes.drawn(self.model, inputs[some], seeds[some]))
        return np.concatenate(made)

    def look(self, outputs: UInt8[np.ndarray, "picture height width 3"]) -> dict[str, Tensor]:
        """Return what the exact judge reads."""
        return still_lifes.look(outputs)

    def seen(self, found: Mapping[str, Tensor]) -> still_lifes.SeenPictures:
        """Return what was read."""
        return still_lifes.seen(found, self.limit)

    def sides(
        self, watcher: Watcher, target: Target, push: Push, inputs: Mapping[str, Sequence[str]], seeds: Sequence[int],
        pool: Pool, generator: np.random.Generator,
    ) -> dict[str, Float[np.ndarray, " picture"]]:  # fmt: skip
        """Return where the target is seen when one object of two is steered: in its part of the picture, or outside."""
        n, prompts = len(seeds), inputs["pair"]
        inside, outside = np.zeros(n), np.zeros(n)
        side = round(pool.n_positions**0.5)  # pictures are as wide as tall
        for k, half in enumerate(SIDES):
            rows = list(range(k, n, len(SIDES)))
            if not rows:
                continue
            region = tuple(round(share * side) for share in half.half)
            there = Push(push.direction, push.strength, push.steps, region)
            seen: Any = watcher.see([prompts[i] for i in rows], [seeds[i] for i in rows], there)
            inside[rows], outside[rows] = seen.shows(target, half.place), seen.shows(target, 1 - half.place)
        return {"inside": inside, "outside": outside}
