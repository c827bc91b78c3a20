"""Many interventions on the same images: what they share is computed once, and they run in batches."""

__all__ = ["Inputs", "check_pairs", "given_beside", "refuse_other_hooks", "run_and_read", "run_many", "run_sets"]

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.attribution import check_model, whole
from vit_lens.errors import InterventionError
from vit_lens.hooking import Name, check_hook_result
from vit_lens.towers import Tower

Inputs = Float[Tensor, "batch channel height width"] | Int[Tensor, "batch pos"] | str | Sequence[str]
_PIXELS = -1  # stands for a run from the pixels
_Stream = Callable[[int], Tensor]
HookSet = Sequence[tuple[Name, Callable]]


@torch.no_grad()
def run_many(
    model: Tower,
    pixels: Inputs,
    hook_sets: Sequence[HookSet],
    *,
    batch_size: int = 64,
) -> Float[Tensor, "set batch *pos d_embed"]:
    """Run the same images once under each set of hooks, without gradients.

    A set starts at the first block that it touches, from the residual stream of the unedited run, and sets that
    start at the same block run side by side, as many as ``batch_size`` images allow. Each hook sees its own
    images alone.

    Args:
        model: The model, without other hooks.
        pixels: The preprocessed images; of a text tower prompts, as texts or ids.
        hook_sets: Lists of (hook name, function), as ``run_with_hooks`` takes them; an empty list is the unedited run.
        batch_size: The number of images in one run; one set runs whole at any rate.

    Raises:
        InterventionError: There are no sets, one is no list of (hook name, function), or a name is a predicate.
        HookShapeError: A hook returned another shape, dtype, device or type than it was given.
        VitLensError: There are other hooks on the model.

    >>> sets = [[], vl.interventions.zero(model, "L3H4"), vl.interventions.zero(model, "L5")]
    >>> embeds = vl.interventions.run_many(model, pixels, sets)
    >>> embeds.shape, torch.allclose(embeds[0], model(pixels), atol=1e-4)
    (torch.Size([3, 2, 128]), True)
    """
    hook_sets = list(hook_sets) if isinstance(hook_sets, Iterable) else [hook_sets]
    if not hook_sets:
        raise InterventionError("no sets of hooks to run; an empty list in the list is the unedited run")
    if wrong := [hooks for hooks in hook_sets if not _is_set(hooks)]:
        raise InterventionError(
            f"{wrong[0]!r} is no set of hooks: hook_sets is a list of lists of (hook name, function), "
            "[[(name, function), ...], ...]"
        )
    return run_and_read(model, pixels, hook_sets, batch_size, lambda embeds: embeds)


@torch.no_grad()
def run_and_read(
    model: Tower, pixels: Inputs, hook_sets: Sequence[HookSet], batch_size: int, read: Callable[[Tensor], Tensor]
) -> Float[Tensor, "set *read"]:
    """Do what :func:`run_many` does, and keep of each set's embeddings what ``read`` makes of them.

    Args:
        model: The model, without other hooks.
        pixels: The preprocessed images [batch channel height width]; of a text tower prompts, as texts or ids.
        hook_sets: Lists of (hook name, function); an empty list is the unedited run.
        batch_size: The number of images in one run.
        read: A function of one set's embeddings [batch d_embed]; what it returns has one shape for all sets.

    Raises:
        InterventionError: A name is a predicate.
        HookShapeError: A hook returned another shape, dtype, device or type than it was given.
        VitLensError: There are other hooks on the model.

    >>> sets = [vl.interventions.zero(model, site) for site in ("L3H4", "L5.mlp")]
    >>> vl.interventions.run_and_read(model, pixels, sets, 64, bank.cosines).shape  # [set batch caption]
    torch.Size([2, 2, 6])
    """
    refuse_other_hooks(model)
    beside = model.beside(pixels)
    at = _PIXELS
    resid: Any = beside.get("tokens", pixels)

    def stream(start: int) -> Tensor:  # called with rising starts
        nonlocal at, resid
        if start != at:
            layer = None if at == _PIXELS else at
            resid = model(resid, start_at_layer=layer, stop_at_layer=start, **given_beside(beside, layer))
            at = start
        return resid

    return run_sets(model, stream, hook_sets, batch_size, read, beside)


@torch.no_grad()
def run_sets(
    model: Tower,
    stream: _Stream,
    hook_sets: Sequence[HookSet],
    batch_size: int,
    read: Callable[[Tensor], Tensor],
    beside: Mapping[str, Tensor] = MappingProxyType({}),
) -> Float[Tensor, "set *read"]:
    """Do what :func:`run_and_read` does, where ``stream`` gives the residual stream that enters a block.

    ``beside`` is what a run from there needs as well.
    """
    starts = [min((_start(model, name) for name, _ in hooks), default=model.cfg.n_layers) for hooks in hook_sets]
    found: dict[int, Tensor] = {}
    for start in sorted(set(starts)):
        group = [index for index, own in enumerate(starts) if own == start]
        x = stream(start)
        layer = None if start == _PIXELS else start
        per_run = max(1, whole("batch_size", batch_size, InterventionError) // len(x))
        for some in (group[i : i + per_run] for i in range(0, len(group), per_run)):
            hooks = _side_by_side([hook_sets[index] for index in some], len(x))
            more = given_beside(beside, layer, len(some))
            out = model.run_with_hooks(torch.cat([x] * len(some)), fwd_hooks=hooks, start_at_layer=layer, **more)
            found.update(zip(some, map(read, out.split(len(x))), strict=True))
    shapes = {tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in found.values()}
    if len(shapes) > 1 or not isinstance(found[0], Tensor):
        raise InterventionError(f"read= returned {sorted(map(str, shapes))}; expected tensors of one shape")
    return torch.stack([found[index] for index in range(len(hook_sets))])


def given_beside(beside: Mapping[str, Tensor], layer: int | None, times: int = 1) -> dict[str, Tensor]:
    """Return what a run from a layer is given beside its input, so many times over; from the start that is no ids."""
    return {name: torch.cat([x] * times) for name, x in beside.items() if layer is not None or name != "tokens"}


def _is_set(hooks: object) -> bool:
    pairs = hooks if isinstance(hooks, (list, tuple)) else [None]
    return all(isinstance(pair, (list, tuple)) and len(pair) == 2 and callable(pair[1]) for pair in pairs)


def refuse_other_hooks(model: Tower) -> None:
    """Raise if hooks are on the model, which side by side runs would confuse.

    Raises:
        InterventionError: It is no model.
        VitLensError: There are.
    """
    check_model(model, InterventionError)
    model.refuse_hooks("a sweep of interventions")


def check_pairs(base: Any, source: Any) -> None:
    """Raise unless there is one image or prompt to take from for each that is run.

    Raises:
        InterventionError: There are more or fewer, or something is no batch of them.
    """
    if wrong := [x for x in (base, source) if not isinstance(x, Sized) or getattr(x, "ndim", 1) == 0]:
        raise InterventionError(
            f"base or source is a {type(wrong[0]).__name__}; expected pixels as model.preprocess(images) gives them, "
            "or prompts"
        )
    if len(base) != len(source):
        what = "images" if isinstance(base, Tensor) and base.ndim == 4 else "prompts"
        raise InterventionError(
            f"base holds {len(base)} {what}, source {len(source)}; they go in pairs (source[i] is patched into base[i])"
        )


def _start(model: Tower, name: Name) -> int:
    if not isinstance(name, str):
        raise InterventionError("a sweep needs hooks with plain names, not predicates")
    model.hook_points_named(name)
    if name.startswith("blocks."):
        return int(name.split(".")[1])
    n_layers = model.cfg.n_layers
    return n_layers if model.reaches(n_layers, None)(name) else _PIXELS


def _side_by_side(hook_sets: list[HookSet], batch: int) -> list[tuple[str, Callable]]:
    by_name: dict[str, list[tuple[slice, Callable]]] = {}
    for index, hooks in enumerate(hook_sets):
        own = slice(index * batch, (index + 1) * batch)
        for name, hook in hooks:
            by_name.setdefault(str(name), []).append((own, hook))
    found = [(name, partial(_apply, edits=edits)) for name, edits in by_name.items()]
    for _, hook in found:
        hook.only_reads = True  # pyright: ignore[reportAttributeAccessIssue] it copies what it edits; once is enough
    return found


def _apply(act: Tensor, hook: HookPoint, *, edits: list[tuple[slice, Callable]]) -> Tensor:
    out = act.clone()
    for own, function in edits:
        value = function(out[own], hook=hook)
        if value is None:
            continue
        check_hook_result(value, out[own], str(hook.name))
        out[own] = value
    return out
