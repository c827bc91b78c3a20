"""Means of what text encoders write, over reference prompts, by aligned positions: start, word k, end, filling."""

__all__ = ["TextMeans"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from vit_lens.errors import LensError, TextError
from vit_lens.identity import fingerprint
from vit_lens.lenses.text_run import PromptReader, TextRun
from vit_lens.towers import ViTActivationCache


@dataclass(frozen=True, eq=False, repr=False)
class TextMeans:
    """What parts of text encoders write on average where a prompt starts, at its word ``k``, at its end and behind it.

    Attributes:
        encoder: What was run, a :class:`vit_lens.decoders.PromptEncoder`.
        n: The number of prompts.
        values: For each encoder and hook point, the mean by role: ``k`` for position ``k`` before the end, then the
            end, then the filling.
        counts: For each encoder, how many positions each role's mean is of.

    >>> means = vl.TextMeans.of(text_to_image, ["a red star", "a blue ring", "two small stars"])
    >>> means, means.counts["text_encoder"][:4].tolist(), means.counts["text_encoder"][-2:].tolist()
    (TextMeans(3 prompts, text_encoder), [3, 3, 3, 3], [3, 31])
    >>> vl.TextSteeringLens(alpha=5, reference=means).label
    'DSL, mean-anchored, alpha 5'
    """

    encoder: PromptReader
    n: int
    values: Mapping[str, Mapping[str, Tensor]]
    counts: Mapping[str, Int[Tensor, " role"]]

    @classmethod
    @torch.no_grad()
    def of(cls, encoder: PromptReader, prompts: Sequence[str], *, truncate: bool = False) -> "TextMeans":
        """Take means over prompts, one after the other; a few hundred that are not studied.

        Args:
            encoder: A :class:`vit_lens.decoders.PromptEncoder`.
            prompts: Texts.
            truncate: Whether prompts that are too long lose their last words; else they are an error.

        Raises:
            TextError: There is no prompt, or one is too long.
            LensError: What should run is no encoder of prompts.
        """
        if isinstance(prompts, str) or not len(prompts):
            raise TextError(f"prompts={prompts!r:.60}; means are over several texts, in a list")
        sums: dict[str, dict[str, Tensor]] = {}
        counts: dict[str, Tensor] = {}
        for text in prompts:
            run = TextRun.of(encoder, text, truncate=truncate)
            for name, cache in run.caches.items():
                roles = _roles(run, name)[0]
                n_roles = len(roles) + 2
                counts[name] = counts.get(name, 0) + torch.bincount(roles, minlength=n_roles)
                for point, value in cache.items():
                    wide = value[0].double()
                    held = sums.setdefault(name, {}).setdefault(point, wide.new_zeros(n_roles, *wide.shape[1:]))
                    held.index_add_(0, roles.to(wide.device), wide)
        values = {
            name: {
                point: total / counts[name].clamp(min=1).to(total).reshape(-1, *[1] * (total.ndim - 1))
                for point, total in held.items()
            }
            for name, held in sums.items()
        }
        return cls(encoder, len(prompts), values, counts)

    @cached_property
    def content(self) -> str:
        """Sixteen digits that follow from the means."""
        return fingerprint(
            {f"{name}.{point}": value for name, of in self.values.items() for point, value in of.items()}
        )

    def aligned(self, run: TextRun, encoder: str) -> ViTActivationCache:
        """Return the means as the cache of a run: at each position of its prompts, that of the position's role.

        Args:
            run: A run of prompts through the same encoders.
            encoder: The name of the encoder.

        Raises:
            LensError: The means are of other encoders, or of shorter prompts alone.
        """
        if run.encoder is not self.encoder:
            raise LensError(
                "the means are of another PromptEncoder; make them of the one that is run: TextMeans.of(...)"
            )
        roles, seen = _roles(run, encoder), self.counts[encoder] > 0
        if not bool(seen[roles].all()):
            row = int((~seen[roles]).any(-1).nonzero()[0])
            raise LensError(
                f"prompt {run.prompts[row]!r:.60} has words, or filling, where no reference prompt has: add longer and "
                "shorter prompts to TextMeans.of(...)"
            )
        cache = run.caches[encoder]
        held = {
            point: value[roles.to(value.device)].to(cache[point].dtype) for point, value in self.values[encoder].items()
        }
        return ViTActivationCache(held, cache.model, rows="all", read_out=cache.read_out)

    def __repr__(self) -> str:
        return f"TextMeans({self.n} prompts, {', '.join(self.values)})"


def _roles(run: TextRun, encoder: str) -> Int[Tensor, "batch pos"]:
    """Return which role each position has: before the end its own number, then the end, then the filling."""
    ids = run.ids[encoder]
    places = torch.arange(ids.shape[1]).expand(len(ids), -1)
    ends = run.tower(encoder).ends(ids).cpu()[:, None]
    behind = (places > ends).long()
    return torch.where(places < ends, places, ids.shape[1] + behind)
