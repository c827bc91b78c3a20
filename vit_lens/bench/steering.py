"""Steering: does it move the output toward the target more than a random direction does, and leave the rest?"""

__all__ = ["STEERING", "Steer", "steer_on"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.bench.candidates import Candidate
from vit_lens.bench.measuring import Measured, measured
from vit_lens.bench.plants import ImagePlant, Plants
from vit_lens.bench.target import Target
from vit_lens.bench.tasks import N_DRAWS, Task
from vit_lens.errors import InterventionError
from vit_lens.mini import mini_groups
from vit_lens.models import HookedViT

Steer = Callable[[HookedViT, Target, float], Any]
STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Those that are tried; one is chosen on half of the images and told of the other half."""
_OVERLAY = ("overlay", "symbol", "corner")  # attributes of which one says the others


@dataclass(frozen=True, kw_only=True)
class _Steered:
    """What a function does at one strength: shares of the distance between the classes, and of answers that stay."""

    effect: float
    placebo: float
    kept: float

    @property
    def less(self) -> float:
        return self.effect - self.placebo


def _run(candidate: Candidate, plants: Plants) -> list[Measured]:
    there, barren, blank = (
        [steer_on(candidate.thing, plant, getattr(plant, model)) for plant in plants.images]
        for model in ("model", "barren", "blank")
    )
    return [
        *selectivity(STEERING.name, there),
        measured(STEERING.name, "decoys", *_pairs(barren)),
        measured(STEERING.name, "random weights", *_pairs(blank)),
    ]


def selectivity(task: str, found: Sequence[_Steered]) -> list[Measured]:
    """Return what steering does to the target, less the placebo, and what it leaves as it is."""
    return [measured(task, "selectivity", *_pairs(found)), measured(task, "kept", [one.kept for one in found])]


def _pairs(found: Sequence[_Steered]) -> tuple[list[float], list[float]]:
    return [one.effect for one in found], [one.placebo for one in found]


@torch.no_grad()
def steer_on(steer: Steer, plant: ImagePlant, model: HookedViT) -> _Steered:
    """Steer images of the first class toward the second, at the strength that does best on others of them.

    Args:
        steer: Returns hooks.
        plant: The plant.
        model: One of its encoders.

    Raises:
        InterventionError: It returned no hooks, or the output is not finite.
    """
    target = Target(captions=plant.attribute.captions, pixels=plant.reference, label=plant.attribute.anchor)
    base = plant.pixels[torch.from_numpy(plant.label == 0)]
    tried = []
    for strength in STRENGTHS:
        hooks = _checked(steer(model, target, strength))
        tried.append(_steered(hooks, plant, model, base[::2]))
    best = int(np.argmax([one.less * one.kept for one in tried]))
    return _steered(_checked(steer(model, target, STRENGTHS[best])), plant, model, base[1::2])


def _steered(hooks: list[tuple[str, Callable]], plant: ImagePlant, model: HookedViT, pixels: Tensor) -> _Steered:
    plain = model(pixels)
    steered = model.run_with_hooks(pixels, fwd_hooks=hooks)
    if not bool(torch.isfinite(steered).all()):
        raise InterventionError("with its hooks the output is not finite")
    generator, placebos = plant.generator(4), []
    for _ in range(N_DRAWS):
        noise = [(name, _at_random(function, generator)) for name, function in hooks]
        placebos.append(_effect(plant, plain, model.run_with_hooks(pixels, fwd_hooks=noise)))
    return _Steered(
        effect=_effect(plant, plain, steered), placebo=float(np.mean(placebos)), kept=_kept(plant, plain, steered)
    )


def _effect(plant: ImagePlant, plain: Tensor, steered: Tensor) -> float:
    """Return how far toward the target the output moves, by how far the classes lie apart; farther than that is 1."""
    moved = (plant.contrast(steered) - plant.contrast(plain)) / plant.apart
    return float(np.minimum(moved, 1.0).mean())


def _kept(plant: ImagePlant, plain: Tensor, steered: Tensor) -> float:
    """Return in what share of images and other attributes the nearest caption stays the same."""
    own = plant.attribute.name
    others = {
        name: [plant.texts.index(text) for text in texts] for name, texts in mini_groups().items()
        if name != own and not (name in _OVERLAY and own in _OVERLAY)
    }  # fmt: skip
    before, after = plant.texts.cosines(plain), plant.texts.cosines(steered)
    same = [(before[:, rows].argmax(-1) == after[:, rows].argmax(-1)).float().mean() for rows in others.values()]
    return float(torch.stack(same).mean())


def _at_random(function: Callable, generator: torch.Generator) -> Callable:
    """Return a hook that changes as much as another one does, at every place, along one random direction."""
    held: dict[str, Float[Tensor, " d"]] = {}

    def put(act: Tensor, hook: Any) -> Tensor:
        before = act.clone()  # a hook may write into what it is given
        found = function(act, hook)
        change = (act if found is None else found) - before
        if "noise" not in held:
            noise = torch.randn(act.shape[-1], generator=generator, dtype=torch.float64)
            held["noise"] = (noise / noise.norm()).to(act)
        return before + change.norm(dim=-1, keepdim=True) * held["noise"]

    return put


def _checked(found: Any) -> list[tuple[str, Callable]]:
    """Return hooks as they are, if they are hooks.

    Raises:
        InterventionError: They are not.
    """
    good = isinstance(found, (list, tuple)) and all(
        isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str) and callable(one[1]) for one in found
    )
    if not good or not found:
        raise InterventionError(
            f"it returned a {type(found).__name__}; expected hooks as run_with_hooks takes them, "
            "[('blocks.7.hook_resid_post', function)]"
        )
    return list(found)


STEERING = Task(
    name="steering", asks=lambda candidate: candidate.kind == "steer", run=_run,
    words="images of one class shall become the other, in an encoder in which one head alone tells the class; beside "
    "it one in which nothing does, and one with random weights",
)  # fmt: skip
