"""Prompts whose words are erased from a layer on: what is planted, the states, and what is asked of them."""

__all__ = ["CLASSES", "Erased", "Scores"]

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vit_lens.errors import StudyError
from vit_lens.interventions import derangement
from vit_lens.lenses import TextDiffusionLens, TextRun
from vit_lens.mini import still_life
from vit_lens.models import HookedTextEncoder
from vit_lens.studies.asked import Asked
from vit_lens.studies.compare.erasing import class_ids, erase, place_of
from vit_lens.studies.text_setup import TextSetup
from vit_lens.text_formats import Reading

Scores = Float[np.ndarray, "prompt erased word question layer"]
CLASSES = {"colour 1": tuple(still_life.COLOURS), "texture 1": still_life.TEXTURES, "shape 1": still_life.SHAPES}
"""The classes of words, by the part that a judge is asked for."""
_EIGHTHS = (0, 3, 6)


@dataclass(frozen=True, eq=False, kw_only=True)
class Erased:
    """Prompts of single objects, and their states with one word erased from a layer on, or never.

    A word that is erased from layer ``p`` on: the states at all positions are, from the residual after ``p`` blocks on,
    those of a run whose token embedding of the word is the mean over the class. It is there at layer ``l`` if ``l < p``
    or it is never erased. Questions are the prompt's own words, class by class, and then those of another prompt.

    Attributes:
        setup: The setup.
        asked: The prompts, each of one object that is described in whole.
        n_fit: How many other sentences maps and probes may be fitted on.

    Raises:
        StudyError: There are fewer than two prompts, one is no such prompt, or the encoder is none of CLIP's kind.
    """

    setup: TextSetup
    asked: Sequence[Asked]
    n_fit: int = 600

    def __post_init__(self) -> None:
        if self.setup.lexicon is None or any(one.sentence is None for one in self.asked):
            raise StudyError(
                "study compare erases words by class (all colours, textures, shapes) and asks a judge for each: it "
                "needs an encoder and prompts of the embedded world; a table of prompts does not say the classes"
            )
        if len({one.prompt for one in self.asked}) < max(2, len(self.asked)):
            raise StudyError("study compare asks each prompt for another one's word: give two or more different ones")
        for one in self.asked:
            mentions = () if one.sentence is None else one.sentence.mentions
            if len(mentions) != 1 or mentions[0].name is not None or not all(mentions[0].says):
                raise StudyError(
                    f"{one.prompt!r}: expected one object with colour, texture and shape, such as kind single"
                )
        if not isinstance(self.run.tower(self.encoder), HookedTextEncoder):
            raise StudyError(f"study compare erases words inside CLIP or T5, and {self.encoder} is neither")

    # ---- what is planted

    @property
    def points(self) -> tuple[int, ...]:
        """The layers from which on a word is erased; never is the row behind them."""
        return tuple(dict.fromkeys(round(one * self.last / 8) for one in _EIGHTHS))

    @property
    def present(self) -> Bool[np.ndarray, "erased layer"]:
        """Whether a word is there, by where it is erased and by layer."""
        since = np.array([*self.points, self.last + 1])
        return np.arange(self.last + 1)[None] < since[:, None]

    def spread(self, said: Float[np.ndarray, "run prompt question layer"]) -> Scores:
        """Return the scores of all items from those of the states that they are made of.

        Args:
            said: Of the clean run, then of the runs without a word of each class.
        """
        clean = np.broadcast_to(said[:1], said[1:].shape)
        found = [np.where(row, clean, said[1:]) for row in self.present]
        return np.stack(found).transpose(2, 0, 1, 3, 4)

    # ---- what is asked

    @cached_property
    def own(self) -> Int[np.ndarray, "prompt word"]:
        """The number of each prompt's word within its class."""
        return still_life.codes([one.sentence.scene for one in self.asked if one.sentence is not None])[:, 1:4]

    @cached_property
    def other(self) -> Int[np.ndarray, " prompt"]:
        """The prompt for whose words each one is asked in the placebo; it may have the same word."""
        return derangement(len(self.asked), seed=self.setup.seed).numpy()

    @cached_property
    def questions(self) -> Int[np.ndarray, "prompt question"]:
        """The number within its class of the word that is asked for: the prompt's own, then another prompt's."""
        return np.concatenate([self.own, self.own[self.other]], 1)

    def choose(self, of: Sequence[Float[Tensor, "run prompt layer _"]]) -> Scores:
        """Return the scores of what is asked, from those of all words of each class at the states."""
        chosen = []
        for number, index in enumerate(self.questions.T):
            found = of[number % len(CLASSES)].double().cpu().numpy()
            chosen.append(np.take_along_axis(found, index[None, :, None, None], -1)[..., 0])
        return self.spread(np.stack(chosen, 2))

    def at_word(self, weights: Float[np.ndarray, "prompt erased word asked layer"]) -> Scores:
        """Return the scores of a method that knows positions alone: a word that the prompt does not have has none.

        Args:
            weights: What the positions of the prompt's words have, class by class.
        """
        there = (self.own == self.own[self.other])[:, None, None, :, None]
        return np.concatenate([weights, np.where(there, weights, 0.0)], 3)

    # ---- runs and states

    @cached_property
    def run(self) -> TextRun:
        """The run of the prompts by the pipeline's own encoders."""
        return TextRun.of(self.setup.reader, [one.prompt for one in self.asked])

    @property
    def reading(self) -> Reading:
        """What the format reads of the encoder."""
        return TextDiffusionLens().moved_in(self.run)

    @property
    def encoder(self) -> str:
        """The name of the encoder."""
        return self.reading.encoder

    @property
    def tower(self) -> HookedTextEncoder:
        """The hooked encoder."""
        tower = self.run.tower(self.encoder)
        if not isinstance(tower, HookedTextEncoder):
            raise StudyError(f"study compare erases words inside CLIP or T5, and {self.encoder} is neither")
        return tower

    @property
    def last(self) -> int:
        """After how many blocks the format reads the encoder."""
        return self.reading.layer(self.run.tower(self.encoder).cfg.n_layers)

    @cached_property
    def ids(self) -> list[Int[Tensor, " answer"]]:
        """The tokens of each class."""
        return [class_ids(self.tower, words) for words in CLASSES.values()]

    @cached_property
    def places(self) -> Int[Tensor, "prompt word"]:
        """Where the words stand."""
        return torch.stack([place_of(self.run, self.encoder, ids) for ids in self.ids], -1)

    @cached_property
    def ends(self) -> Int[Tensor, " prompt"]:
        """Where the prompts end."""
        return self.run.ends(self.encoder)

    @cached_property
    def runs(self) -> list[TextRun]:
        """The clean run of the hooked encoder, then one without the word of each class."""
        return [erase(self.run, self.encoder, ids) for ids in (None, *self.ids)]

    @cached_property
    def states(self) -> Float[Tensor, "run prompt layer pos d_model"]:
        """The residual stream of the runs up to the layer that the format reads, not normed."""
        layers = range(self.last + 1)
        return torch.stack(
            [torch.stack([run.residual(self.encoder, one) for one in layers], 1) for run in self.runs]
        )  # fmt: skip

    @property
    def end_states(self) -> Float[Tensor, "run prompt layer d_model"]:
        """The residual stream at the end of the text."""
        rows = torch.arange(len(self.asked), device=self.ends.device)
        return self.states[:, rows, :, self.ends].transpose(0, 1)
