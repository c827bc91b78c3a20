"""Which tokens of a run a dictionary is of: ``all``, ``patches``, ``cls``, or any tokens of addresses."""

__all__ = ["reads_text", "rule_mask", "token_rule"]

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.config import HookedTextConfig
from vit_lens.dictionaries.denoisers import Denoises, positions_of
from vit_lens.errors import DictionaryError
from vit_lens.tokens import RUN_IDS, resolve_tokens


def reads_text(model: Any) -> bool:
    """Whether a model's inputs are prompts, in which a token may stand anywhere."""
    return isinstance(getattr(model, "cfg", None), HookedTextConfig)


def token_rule(model: Any, tokens: str) -> list[int] | None:
    """Return the positions that a rule names, the same for all inputs; None for all, or where each has its own.

    Raises:
        InterventionError: The model has no such token.
    """
    if tokens == "all" or reads_text(model):
        return None
    if isinstance(model, Denoises):
        return positions_of(tokens)
    cfg = getattr(model, "cfg", None)
    if cfg is None:
        raise DictionaryError(f"tokens={tokens!r}: the model does not say which tokens it has; give tokens='all'")
    return resolve_tokens(tokens, cfg)


def rule_mask(model: Any, tokens: str) -> Callable[[Tensor, HookPoint], Bool[Tensor, "#batch #pos 1"] | None]:
    """Return a function of an activation and its hook point: True at the tokens of a rule; None for all.

    All tokens of prompts are those of :meth:`HookedTextEncoder.attention_mask`: what a prompt is filled up with is no
    token of it. An activation without an axis of tokens has one token.

    Raises:
        InterventionError: The model has no such token.
    """
    positions, of_prompts = token_rule(model, tokens), reads_text(model)

    def where(x: Tensor, hook: HookPoint) -> Tensor | None:
        if x.ndim < 3 or (tokens == "all" and not of_prompts):
            return None
        if of_prompts:
            ids = hook.ctx.get(RUN_IDS)
            if ids is None:
                raise DictionaryError(f"tokens={tokens!r}: the run does not say of which prompts it is; give them")
            found = model.attention_mask(ids) if tokens == "all" else model.positions_of(tokens, ids)
            return found[..., None]
        if positions is not None and max(positions) >= x.shape[1]:
            raise DictionaryError(f"tokens={tokens!r}: {hook.name} has positions 0 to {x.shape[1] - 1} in this run")
        mask = torch.zeros(1, x.shape[1], 1, dtype=torch.bool, device=x.device)
        mask[:, positions] = True
        return mask

    return where
