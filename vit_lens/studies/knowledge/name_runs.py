"""Prompts of names in pairs of equal length: where the name is, where the text ends, and how far a state has moved."""

__all__ = ["OUTCOMES", "NameRuns", "States"]

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vit_lens.errors import StudyError
from vit_lens.lenses import TextDiffusionLens, TextRun
from vit_lens.models import HookedTextEncoder
from vit_lens.studies.asked import Asked
from vit_lens.studies.text_setup import TextSetup
from vit_lens.towers import ViTActivationCache

OUTCOMES = ("end", "whole")
"""What is compared: the last state at the end of the text, after the final norm; and all that the denoiser reads."""
_KEPT = ("hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z")
Hooks = Sequence[tuple[str, Callable]]


class States(NamedTuple):
    """The outcomes of a run, in float64; their fields are :data:`OUTCOMES`."""

    end: Float[Tensor, "name d_model"]
    whole: Float[Tensor, "name feature"]


@dataclass(frozen=True, eq=False, kw_only=True)
class NameRuns:
    """Prompts of a text tower, each with another one of the same length, and what is known of their places.

    A prompt's name is where prompts of its length are not all alike, from the first such position to the last.

    Attributes:
        tower: The tower.
        ids: The prompts.
        mask: Which tokens the encoder is told to look at; None for all.
        read: After how many blocks the denoiser reads the state.
        norm: Whether it reads it after the final norm.
        kept: The numbers of the prompts among those that were given: without those that have no partner.
        group: For each prompt, the position of its end: prompts of one length.
        other: For each prompt, its partner.
        name: Where the name is.
        end: The end of the text and all behind it, which repeats it where the text is filled up.
    """

    tower: HookedTextEncoder
    ids: Int[Tensor, "name pos"]
    mask: Tensor | None
    read: int
    norm: bool
    kept: tuple[int, ...]
    group: Int[Tensor, " name"]
    other: Int[Tensor, " name"]
    name: Bool[Tensor, "name pos"]
    end: Bool[Tensor, "name pos"]

    @classmethod
    def of(
        cls,
        tower: HookedTextEncoder,
        ids: Int[Tensor, "prompt pos"],
        *,
        meanings: Sequence[Hashable],
        generator: np.random.Generator,
        mask: Tensor | None = None,
        read: int | None = None,
        norm: bool = True,
    ) -> "NameRuns":
        """Give each prompt another one of its length and of another meaning, at random.

        Args:
            tower: The tower.
            ids: The prompts, filled up to one length.
            meanings: What each prompt means: prompts that mean the same are no partners.
            generator: Draws partners.
            mask: Which tokens the encoder is told to look at.
            read: After how many blocks the denoiser reads the state; None for all.
            norm: Whether it reads it after the final norm.

        Raises:
            StudyError: No prompt has a partner.
        """
        ends = tower.ends(ids)
        kept, other = [], []
        for i, meaning in enumerate(meanings):
            fit = [j for j, one in enumerate(meanings) if one != meaning and ends[j] == ends[i]]
            if fit:
                kept.append(i)
                other.append(int(generator.choice(fit)))
        if not kept:
            raise StudyError(
                "no two of these names are of one length and mean different things, so that none can be restored into "
                "the run of another; give more names"
            )
        ids, ends = ids[kept], ends[kept]
        place = torch.arange(ids.shape[1], device=ids.device)
        name = torch.zeros_like(ids, dtype=torch.bool)
        for end in ends.unique():
            rows = ends == end
            odd = (ids[rows] != ids[rows][:1]).any(0).nonzero()[:, 0]
            name[rows] = (place >= odd[0]) & (place <= odd[-1])
        return cls(
            tower=tower, ids=ids, mask=None if mask is None else mask[kept], norm=norm, kept=tuple(kept), group=ends,
            read=tower.cfg.n_layers if read is None else read, name=name, end=place >= ends[:, None],
            other=torch.tensor([kept.index(j) for j in other], device=ids.device),
        )  # fmt: skip

    @classmethod
    def of_setup(cls, setup: TextSetup, asked: Sequence[Asked], generator: np.random.Generator) -> "NameRuns":
        """Return the prompts as the encoder of a setup reads them; see :meth:`of`.

        Raises:
            StudyError: No prompt has a partner, or the encoder is hooked by TransformerLens' bridge.
        """
        run = TextRun.of(setup.reader, [one.prompt for one in asked])
        reading = TextDiffusionLens().moved_in(run)
        tower, encoder = run.tower(reading.encoder), reading.encoder
        if not isinstance(tower, HookedTextEncoder):
            raise StudyError(
                f"study knowledge restores and ablates parts of {encoder}, and a {type(tower).__name__} has hooks "
                "between blocks alone; give a pipeline with CLIP or T5"
            )
        meanings = [one.prompt if one.sentence is None else one.sentence.scene for one in asked]
        return cls.of(
            tower, run.ids[encoder], meanings=meanings, generator=generator, mask=run.masks[encoder],
            read=reading.layer(tower.cfg.n_layers), norm=reading.norm,
        )  # fmt: skip

    # ---- runs and what they come to

    @cached_property
    @torch.no_grad()
    def cache(self) -> ViTActivationCache:
        """The clean runs of all prompts."""
        names = [f"blocks.{i}.{part}" for i in range(self.tower.cfg.n_layers) for part in _KEPT]
        _, cache = self.tower.run_with_cache(self.ids, attention_mask=self.mask, names_filter=[self.stream(0), *names])
        return cache

    def residual(self, layer: int) -> Float[Tensor, "name pos d_model"]:
        """Return the clean residual stream after so many blocks."""
        return self.cache[self.stream(layer)]

    def stream(self, layer: int) -> str:
        """Return the hook point of the residual stream after so many blocks."""
        return f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"

    @torch.no_grad()
    def run(self, start: int, hooks: Hooks, *, others: bool = False) -> States:
        """Run from the clean stream that enters a block, with hooks, and return the outcomes.

        Args:
            start: The block; nothing before it is hooked.
            hooks: Hook points of this block and later ones, with functions.
            others: Whether each prompt's partner runs in its place.
        """
        found: dict[int, Tensor] = {}
        n_layers = self.tower.cfg.n_layers

        def keeper(layer: int) -> Callable:
            def keep(act: Tensor, hook: object) -> None:
                found[layer] = act.clone()

            return keep

        rows = self.other if others else torch.arange(len(self.ids), device=self.ids.device)
        # Behind the edits, so that what is kept is edited.
        kept = [(self.stream(one), keeper(one)) for one in {self.read, n_layers} if one > start]
        self.tower.run_with_hooks(
            self.residual(start)[rows], start_at_layer=start, tokens=self.ids[rows], fwd_hooks=[*hooks, *kept],
            attention_mask=None if self.mask is None else self.mask[rows],
        )  # fmt: skip
        read = found[self.read] if self.read in found else self.residual(self.read)[rows]
        return self._states(found[n_layers], read)

    def _states(self, last: Float[Tensor, "name pos d_model"], read: Float[Tensor, "name pos d_model"]) -> States:
        ends = self.tower.ln_final(last)[torch.arange(len(last), device=last.device), self.group]
        whole = self.tower.ln_final(read) if self.norm else read
        return States(ends.double(), whole.flatten(1).double())

    @cached_property
    @torch.no_grad()
    def clean(self) -> States:
        """The outcomes of the clean runs."""
        return self._states(self.residual(self.tower.cfg.n_layers), self.residual(self.read))

    @cached_property
    def apart(self) -> States:
        """By how much the outcomes of each prompt differ from those of its partner."""
        return States(*(state - state[self.other] for state in self.clean))

    def along(self, change: States) -> dict[str, Float[np.ndarray, " name"]]:
        """Return by what share of the difference between a prompt and its partner each outcome has moved.

        That is <change, clean - other> / |clean - other|^2: the straight way from the other name's state to the clean
        one, so that shares of parts that add up in the state add up. nan where the two states are equal.
        """
        found = {}
        for outcome, moved, apart in zip(OUTCOMES, change, self.apart, strict=True):
            length = apart.square().sum(-1)
            share = (moved * apart).sum(-1) / torch.where(length > 0, length, torch.nan)
            found[outcome] = share.cpu().numpy()
        return found

    def neutral(self, act: Float[Tensor, "name *axes"]) -> Float[Tensor, "name *axes"]:
        """Return an activation with each prompt's replaced by the mean over all prompts of its length."""
        mean = act.clone()
        for end in self.group.unique():
            rows = self.group == end
            mean[rows] = act[rows].mean(0)
        return mean
