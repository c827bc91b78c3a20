"""Attention rollout (Abnar & Zuidema 2020, "Quantifying attention flow in transformers", arXiv 2005.00928)."""

__all__ = ["AttentionRollout", "rollout"]

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.studies.compare.erased import CLASSES, Erased, Scores
from vit_lens.studies.compare.erasing import erase


def rollout(
    patterns: Float[Tensor, "*rows block head query key"],
) -> Float[Tensor, "*rows layer query key"]:  # fmt: skip
    """Return how much every position of a layer has of every position of the input.

    Attention is averaged over heads, the identity is added for the residual, rows are made to sum to 1, and the
    matrices are multiplied from the first block on. Before the first block it is the identity.
    """
    mean = patterns.mean(-3)
    one = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    steps = (mean + one) / (mean + one).sum(-1, keepdim=True)
    found = [one.expand(*mean.shape[:-3], -1, -1)]
    for block in range(steps.shape[-3]):
        found.append(steps[..., block, :, :] @ found[-1])
    return torch.stack(found, -3)


@dataclass(frozen=True)
class AttentionRollout:
    """The weight that the end of the text has of the word's position, by the patterns of the edited run."""

    name = "attention rollout"
    level = "embedding"
    words = (
        "the weight of the word's position at the end of the text, by attention plus identity, multiplied over blocks; "
        "before the edit the clean run's patterns, behind it those of the run without the word"
    )

    @torch.no_grad()
    def score(self, erased: Erased) -> Scores:
        """Return the weights of positions; a word that stands nowhere in the prompt has none."""
        patterns = [self._patterns(erased, ids) for ids in (None, *erased.ids)]
        rows, n = torch.arange(len(erased.asked), device=erased.ends.device), len(CLASSES)
        found = np.zeros((len(rows), len(erased.points) + 1, n, n, erased.last + 1))
        for number, since in enumerate((*erased.points, erased.last)):
            for word in range(n):
                mixed = torch.cat([patterns[0][:, :since], patterns[1 + word][:, since:]], 1)
                end = rollout(mixed)[rows, :, erased.ends]
                weights = end.gather(-1, erased.places[:, None].expand(-1, erased.last + 1, -1))
                found[:, number, word] = weights.transpose(1, 2).cpu().numpy()
        return erased.at_word(found)

    def _patterns(self, erased: Erased, ids: Tensor | None) -> Float[Tensor, "prompt block head query key"]:
        names = [f"blocks.{block}.attn.hook_pattern" for block in range(erased.last)]
        kept: dict[str, Tensor] = {}

        def keep(act: Tensor, hook: object) -> None:
            kept[hook.name] = act.double()  # pyright: ignore[reportAttributeAccessIssue]

        with erased.tower.hooks(fwd_hooks=[(name, keep) for name in names]):
            erase(erased.run, erased.encoder, ids)
        return torch.stack([kept[name] for name in names], 1)

    def cost(self, erased: Erased) -> str:
        """Say how many runs there are."""
        return f"{(1 + len(CLASSES)) * len(erased.asked)} runs of a prompt"
