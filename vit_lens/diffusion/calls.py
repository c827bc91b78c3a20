"""A call of a stock pipeline: its arguments checked, its noise seeded for each picture, before anything runs."""

__all__ = ["Call", "generators"]

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vit_lens.addresses import as_index
from vit_lens.diffusion.ports import Denoiser
from vit_lens.errors import VitLensError, nearest

_OURS = {"prompt": "prompts", "num_inference_steps": "steps", "return_dict": None}
_KEPT_OUT = ("callback", "callback_steps")  # of old releases


@dataclass(frozen=True)
class Call:
    """What a pipeline is called with.

    Attributes:
        given: Its arguments.
        every: The same with the pipeline's own defaults for all others.
        n_pictures: How many pictures are drawn.
        of_step: For each pass of a step the branches in its rows.
    """

    given: dict[str, Any]
    every: dict[str, Any]
    n_pictures: int
    of_step: tuple[tuple[str, ...], ...]

    @classmethod
    def of(
        cls,
        pipeline: Any,
        row: Denoiser,
        prompts: str | Sequence[str] | None,
        steps: int | None,
        seed: int | Sequence[int] | None,
        options: Mapping[str, Any],
        defaults: Mapping[str, Any],
    ) -> "Call":
        """Check arguments and put them together.

        Args:
            pipeline: The pipeline.
            row: The kind of its denoiser.
            prompts: The prompts; None where ``prompt_embeds`` is among the options.
            steps: The number of steps; None for the default.
            seed: The seed of each picture's noise, or one for all; None for 0, or where noise is given.
            options: Other arguments of the pipeline, by name.
            defaults: Arguments that stand in for those that are not given.

        Raises:
            VitLensError: The pipeline has no such argument, or one is not what it should be.
        """
        kind = type(pipeline).__name__
        known = {
            name: one.default
            for name, one in inspect.signature(type(pipeline).__call__).parameters.items()
            if name != "self" and one.kind is not one.VAR_KEYWORD and name not in _KEPT_OUT
        }
        for name in options:
            if name in _OURS:
                raise VitLensError(f"{name} is called {_OURS[name]} here" if _OURS[name] else _no_dict())
            if name in row.refused:
                raise VitLensError(f"{name} is not taken here: {row.refused[name]}")
            if name not in known:
                here = sorted({*known, *_OURS.values(), "seed"} - {*_OURS, None})  # pyright: ignore[reportArgumentType]
                raise VitLensError(f"a {kind} takes no {name!r}; nearest: {nearest(name, here)}")
        given: dict[str, Any] = {**{key: one for key, one in defaults.items() if key in known}, **options}
        n = len(given["prompt_embeds"]) if given.get("prompt_embeds") is not None else 0
        texts = _texts(prompts)
        if texts is None and not n:
            raise VitLensError("prompts=None; expected a prompt, or a list of them, or prompt_embeds=")
        if texts is not None:
            given["prompt"], n = texts, len(texts)
        for name in known:  # one text for all prompts: pipelines take as many, or none
            if "prompt" in name and isinstance(given.get(name), str):
                given[name] = [given[name]] * n
        if steps is not None:
            given["num_inference_steps"] = _positive(steps, "steps")
        copies = _positive(given.get("num_images_per_prompt") or 1, "num_images_per_prompt")
        if given.get("generator") is not None or given.get("latents") is not None:
            if seed is not None:
                raise VitLensError("seed= and generator= or latents= both say what the noise is; give one of them")
        if given.get("generator") is None:
            given["generator"] = generators(0 if seed is None else seed, n * copies)
        given["return_dict"] = False
        every = {**known, **given}
        return cls(given, every, n * copies, row.passes(pipeline, every))

    def shapes(self, pipeline: Any, row: Denoiser) -> dict[str, Any]:
        """Return the shape of each argument that the denoiser will be given, for the rows of one branch."""
        height, width = self.sides(pipeline, row)
        return row.inputs(pipeline, self.every, self.n_pictures, height, width)

    def sides(self, pipeline: Any, row: Denoiser) -> tuple[int, int]:
        """Return height and width of the pictures, in pixels."""
        default = row.sides(pipeline)
        return self.every.get("height") or default[0], self.every.get("width") or default[1]

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches of a step."""
        return tuple(branch for one in self.of_step for branch in one)


def _texts(prompts: Any) -> list[str] | None:
    if prompts is None:
        return None
    texts = [prompts] if isinstance(prompts, str) else list(prompts) if isinstance(prompts, (list, tuple)) else []
    if not texts or not all(isinstance(one, str) for one in texts):
        raise VitLensError(f"prompts={prompts!r:.80}; expected a prompt, or a list of at least one")
    return texts


def _positive(number: Any, name: str) -> int:
    found = as_index(number)
    if found is None or found < 1:
        raise VitLensError(f"{name}={number!r}; expected a whole number from 1")
    return found


def generators(seed: Any, n: int) -> list[torch.Generator]:
    """Return one generator for each picture, on the CPU, so that noise is the same on every device."""
    one = as_index(seed)
    seeds = [one] * n if one is not None else [as_index(each) for each in seed] if _is_list(seed) else [None]
    if len(seeds) != n or None in seeds:
        raise VitLensError(f"seed={seed!r:.80}; expected a whole number, or one for each of the {n} pictures")
    return [torch.Generator("cpu").manual_seed(each) for each in seeds if each is not None]


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, range)) or (hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1)


def _no_dict() -> str:
    return "return_dict is not taken: a hooked model returns the pictures, or latents, and nothing around them"
