"""Words erased from a text encoder's input: in their place stands the mean token embedding of their class."""

__all__ = ["ErasedLens", "class_ids", "erase", "place_of"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from vit_lens.addresses import Site, Sites
from vit_lens.conditions import Condition
from vit_lens.errors import LensError, StudyError
from vit_lens.lenses import HookFn, TextDiffusionLens, TextRun
from vit_lens.models import HookedTextEncoder


def class_ids(tower: HookedTextEncoder, words: Sequence[str]) -> Int[Tensor, " word"]:
    """Return the token of each word of a class.

    Args:
        tower: The tower.
        words: The words.

    Raises:
        StudyError: A word is not one token.
    """
    rows = [[int(one) for one in tower.to_tokens(word)[0]] for word in words]
    for word, row in zip(words, rows, strict=True):
        if len(row) != 3:  # between the start and the end
            raise StudyError(f"{word!r} is {len(row) - 2} tokens; a word that is erased must be one")
    return torch.tensor([row[1] for row in rows], device=tower.device)


def place_of(run: TextRun, encoder: str, ids: Int[Tensor, " word"]) -> Int[Tensor, " prompt"]:
    """Return where each prompt has its word of a class.

    Raises:
        StudyError: A prompt has none, or several.
    """
    found = torch.isin(run.ids[encoder], ids)
    for prompt, n in zip(run.prompts, found.sum(-1).tolist(), strict=True):
        if n != 1:
            raise StudyError(f"{prompt!r} has {n} words of a class of {len(ids)}; expected one of each class")
    return found.int().argmax(-1)


def erase(run: TextRun, encoder: str, ids: Int[Tensor, " word"] | None) -> TextRun:
    """Return the run in which every word of a class is the mean of the class, by its token embedding.

    Nothing in it depends on which word of the class a prompt has.

    Args:
        run: A run of prompts.
        encoder: The encoder whose words are erased.
        ids: The tokens of the class; None erases nothing, in the same hooked tower.
    """
    if ids is None:
        return run.edited(encoder, [])
    tower = run.tower(encoder)
    mean = tower.get_submodule("embed").W_E[ids].mean(0)  # pyright: ignore[reportIndexIssue]
    there = torch.isin(run.ids[encoder], ids)[..., None]

    def put(act: Tensor, hook: object) -> Tensor:
        return torch.where(there, mean, act)

    return run.edited(encoder, [("hook_embed", put)])


@dataclass(frozen=True, kw_only=True)
class ErasedLens(TextDiffusionLens):
    """The Diffusion Lens on a run in which the words of a class are erased from the input.

    Args:
        words_erased: The class; without any, nothing is erased.
        norm: As for :class:`vit_lens.TextDiffusionLens`, and so are the others.
        encoder: The encoder that is moved.
        positions: The positions that are moved.
        held: The positions that are held.
        pooled: What a pooled vector is made of.
    """

    words_erased: tuple[str, ...] = ()

    name = "erased"

    def settings(self) -> dict[str, Any]:
        """Return the definition, which words are erased, and every setting of the reading."""
        return super().settings() | {"words_erased": ", ".join(self.words_erased) or None}

    @property
    def definition(self) -> str:
        """The state, in the symbols of the class."""
        return "h_l where the format reads, of the run whose words of a class have the mean token embedding of it"

    @property
    def words(self) -> str:
        """A sentence on how a state is read."""
        return "Puts the state of a run without a word where the format reads its text encoder."

    @property
    def _title(self) -> str:
        return "Diffusion Lens, a word erased" if self.words_erased else "Diffusion Lens, no word erased"

    def read(self, cache: TextRun, sites: Sites) -> Condition:
        """Return the condition of every site of the run without the words; rows are [prompt site].

        Args:
            cache: A run of prompts.
            sites: As for :class:`vit_lens.TextDiffusionLens`.

        Raises:
            LensError: The encoder is hooked by TransformerLens' bridge.
            StudyError: A word is not one token.
        """
        return super().read(self.run_of(cache), sites)

    def run_of(self, run: TextRun) -> TextRun:
        """Return the run without the words."""
        encoder = self.moved_in(run).encoder
        tower = run.tower(encoder)
        if not isinstance(tower, HookedTextEncoder):
            raise LensError(f"words are erased from CLIP and T5, and {encoder} is a {type(tower).__name__}")
        return erase(run, encoder, class_ids(tower, self.words_erased) if self.words_erased else None)

    def hooks(self, cache: TextRun, site: Site | str) -> list[tuple[str, HookFn]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Raise: the input is edited, not the layer that is read.

        Raises:
            LensError: Always.
        """
        raise LensError(f"{self.label} has no hook functions; read(run, sites) is its closed form")
