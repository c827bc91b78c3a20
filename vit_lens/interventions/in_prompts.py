"""Replacing at tokens that stand at a place of their own in every prompt: a word, the end, what is filled up."""

__all__ = ["Places", "places_in", "replace_in_prompts"]

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.errors import InterventionError
from vit_lens.tokens import RUN_IDS, Tokens, token_list
from vit_lens.towers import Tower

Places = tuple[tuple[int, ...], ...]  # of each prompt


def places_in(model: Tower, where: Tokens, prompts: Any, cached: Any = None) -> tuple[Places, Places | None]:
    """Return the positions of tokens in each prompt, and those at which cached prompts have the same tokens.

    Of several tokens each is read where it stands itself, in whatever order they do; a bool tensor [batch pos] says
    itself where, and is read at the same positions, as all are where nothing is cached (None).

    Raises:
        InterventionError: The model reads no prompts, one of them has no such token, or has it more often than the
            cached one.
    """
    if isinstance(where, Tensor) and where.dtype == torch.bool:
        return _rows(where), None
    if cached is None:
        return _rows(model.positions_of(where, prompts)), None
    items = token_list(where)
    pairs = [[_rows(model.positions_of(item, given)) for given in (prompts, cached)] for item in items]
    for item, (places, sources) in zip(items, pairs, strict=True):
        _require_pairs(item, places, sources)
    places, sources = (tuple(sum(rows, ()) for rows in zip(*each, strict=True)) for each in zip(*pairs, strict=True))
    for prompt, row in enumerate(places):
        if len(set(zip(row, _of(sources, prompt), strict=True))) > len(set(row)):
            raise InterventionError(
                f"{where}: one token of prompt {prompt} is named twice, and would be read at two places of the cached "
                "one; name it once"
            )
    return places, sources


def _rows(mask: Tensor) -> Places:
    return tuple(tuple(row.nonzero()[:, 0].tolist()) for row in mask)


def _require_pairs(name: object, places: Places, sources: Places) -> None:
    for prompt, row in enumerate(places):
        held = _of(sources, prompt)
        if len(held) != len(row):
            raise InterventionError(
                f"{name} is {len(row)} tokens of prompt {prompt}, and {len(held)} of the cached one; patch words of as "
                "many tokens, or name positions"
            )


def replace_in_prompts(
    act: Tensor,
    hook: HookPoint,
    *,
    value: Tensor | None,
    units: list[int] | None,
    of: int,
    places: Places,
    sources: Places | None,
    ids: Places | None,
    for_any: bool,
) -> Tensor:
    """Replace an activation at the places of each prompt by zero, or by ``value`` at its sources.

    Args:
        act: The activation [batch pos ...].
        hook: Where it is.
        value: What replaces it, of one prompt for all or of each [batch pos ...]; None for zero.
        units: The heads or neurons that are replaced; None for the whole activation.
        of: How many of them there are; 0 where ``units`` is None.
        places: The positions that are written.
        sources: The positions of ``value`` that are read; None for the same.
        ids: The tokens of the prompts that ``places`` are of and that must run; None where that is not known.
        for_any: Whether one value is for any number of prompts.
    """
    longest = max((max(row, default=0) for row in places), default=0)
    given = len(places) if value is None or for_any else len(value)
    if not len(act) == len(places) == given:
        raise InterventionError(
            f"{hook.name}: prompts= are {len(places)}, there are activations for {given}, and the run has {len(act)}; "
            "give the prompts that are run, and choose with images="
        )
    run = hook.ctx.get(RUN_IDS)
    if run is not None and ids is not None and any(map(_differ, run.tolist(), ids)):
        raise InterventionError(
            f"{hook.name}: the places are those of prompts=, and this run is of other prompts, or of these in another "
            "order; make the hooks with prompts= as they are run"
        )
    fits = value is None or value.shape[2:] == (act.shape[2:] if units is None else (len(units), *act.shape[3:]))
    if longest >= act.shape[1] or of not in (0, act.shape[2]) or not fits:
        raise InterventionError(f"{hook.name}: these hooks are of another model than this run, or of longer prompts")
    out = act.clone()
    for prompt, row in enumerate(places):
        at = torch.tensor(row, dtype=torch.long, device="cpu")
        read = row if sources is None else _of(sources, prompt)
        new = 0 if value is None else value[prompt if len(value) > 1 else 0, list(read)].to(act)
        if units is None:
            out[prompt, at] = new
        else:
            out[prompt, at[:, None], torch.tensor(units, device="cpu")] = new
    return out


def _differ(run: Sequence[int], named: Sequence[int]) -> bool:
    n = min(len(run), len(named))  # beyond it there is filling alone
    return list(run[:n]) != list(named[:n])


def _of(places: Places, prompt: int) -> tuple[int, ...]:
    return places[prompt if len(places) > 1 else 0] if prompt < len(places) or len(places) == 1 else ()
