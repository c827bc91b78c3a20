"""Replacing in models that run in steps and read addresses themselves: hooked diffusion models."""

__all__ = ["Caches", "checked_caches", "n_pictures", "patch_in_steps", "zero_in_steps"]

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Sites, listed
from vit_lens.errors import InterventionError
from vit_lens.hooking import Aim, Aiming, SteppedCache

Caches = SteppedCache | Mapping[str, SteppedCache]  # of one branch of guidance, or by branch
_Hooks = list[tuple[str, Callable[..., Any]]]


def zero_in_steps(model: Aiming, sites: Sites, tokens: object, prompts: object) -> _Hooks:
    """Return hooks that set what addresses name to zero, in every branch.

    Raises:
        InterventionError: ``tokens`` or ``prompts`` are given, which addresses say.
        UnknownSiteError: The model has no such part.
    """
    return [(aim.name, _zero) for aim in _aims(model, sites, tokens, prompts)]


def patch_in_steps(
    model: Aiming, sites: Sites, caches: Mapping[str, SteppedCache], images: list[int] | None, *, for_any: bool,
    tokens: object, prompts: object,
) -> _Hooks:  # fmt: skip
    """Return hooks that set what addresses name to what it was in another run, at the same step and branch.

    Args:
        model: The model.
        sites: The addresses.
        caches: The other run, by branch.
        images: Which cached picture each picture takes; None gives the first the first, and so on.
        for_any: Whether one picture is for any number of them.
        tokens: None.
        prompts: None.

    Raises:
        InterventionError: ``tokens`` or ``prompts`` are given, which addresses say.
        UnknownHookError: A cache does not hold it.
        UnknownSiteError: The model has no such part.
        VitLensError: A cache lacks the step; in the run too, where the address says none.
    """
    hooks: _Hooks = []
    for aim in _aims(model, sites, tokens, prompts):
        for cache in caches.values():
            _held(cache, aim, aim.step)
        hook = partial(_patch, model=model, caches=dict(caches), aim=aim, images=images, for_any=for_any)
        hook.branches = tuple(caches)  # pyright: ignore[reportAttributeAccessIssue]
        hooks.append((aim.name, hook))
    return hooks


def checked_caches(model: Any, cache: object) -> dict[str, SteppedCache]:
    """Return the caches of a run by branch.

    Raises:
        InterventionError: They are none of a hooked diffusion model, or of another one.
    """
    given = dict(cache) if isinstance(cache, dict) else {getattr(cache, "branch", None): cache}
    for branch, one in (given or {None: None}).items():
        if not isinstance(one, SteppedCache) or getattr(one, "branch", None) != branch or branch is None:
            raise InterventionError(
                f"expected the cache of this model's run_with_cache, of one branch or of branch='both'; not "
                f"{type(cache).__name__}"
            )
        other: Any = one
        if other.model is not model and other.model.fingerprint != model.fingerprint:
            raise InterventionError(
                f"the cache is of {other.model.model_id} ({other.model.fingerprint}), and the model is "
                f"{model.model_id} ({model.fingerprint}); run this model with run_with_cache"
            )
    return given  # pyright: ignore[reportReturnType]


def n_pictures(model: Aiming, sites: Sites, caches: Mapping[str, SteppedCache]) -> int:
    """Return how many pictures caches are of."""
    aim = _aims(model, sites, None, None)[0]
    return len(_held(next(iter(caches.values())), aim, aim.step))


def _aims(model: Aiming, sites: Sites, tokens: object, prompts: object) -> list[Aim]:
    if (tokens, prompts) != (None, None):
        raise InterventionError(
            "tokens= and prompts= are of towers; of a denoiser the address says the token, as 'D5.img.mlp@7'"
        )
    return list(dict.fromkeys(aim for site in listed(sites) for aim in model.aims(str(site))))


def _held(cache: SteppedCache, aim: Aim, step: int | None) -> Tensor:
    name = aim.point if aim.address is None else str(replace(aim.address, step=None))
    return cache.at_step(cache.steps[0].index if step is None else step)[name]


def _zero(act: Tensor, hook: HookPoint) -> Tensor:
    return torch.zeros_like(act)


def _patch(
    act: Tensor, hook: HookPoint, *, model: Any, caches: dict[str, SteppedCache], aim: Aim, images: list[int] | None,
    for_any: bool,
) -> Tensor | None:  # fmt: skip
    if model.current_branch is None or model.current_step is None:
        raise InterventionError(f"{aim.name}: patches are of a step and a branch, and this pass says none")
    if model.current_branch not in caches:
        return None
    value = _held(caches[model.current_branch], aim, model.current_step.index)
    value = value if images is None else value[images]
    if value.shape[1:] != act.shape[1:] or not (len(value) == len(act) or for_any):
        raise InterventionError(
            f"{aim.name}: there are activations of shape {tuple(value.shape)}, and the run has {tuple(act.shape)}; run "
            "as many pictures of that size, or choose with images="
        )
    return value.to(act).expand_as(act)
