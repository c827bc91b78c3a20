"""Tokens of some steps of a run alone, and which step a token is of."""

__all__ = ["StepTokens", "steps_of"]

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.dictionaries.denoisers import place_of
from vit_lens.dictionaries.reading import TokenReader
from vit_lens.errors import DictionaryError


def steps_of(places: Int[Tensor, " token"]) -> Int[Tensor, " token"]:
    """Return the step that each place in a draw is of, as :func:`step_and_position` does for one."""
    return torch.div(places, place_of(1, 0), rounding_mode="floor")


class StepTokens:
    """The tokens of another reader that are of some of its steps.

    Args:
        reader: The other.
        steps: Which of its steps, counted from 0.

    Raises:
        DictionaryError: It has no steps, or not these.
    """

    def __init__(self, reader: TokenReader, steps: Sequence[int]):
        had, chosen = reader.provenance.at_steps, [as_index(step) for step in steps]
        if had is None:
            raise DictionaryError("these tokens are of no steps; a source of a diffusion model's are")
        if not chosen or any(step not in had for step in chosen):
            raise DictionaryError(f"at_steps={list(steps)}: the tokens are of the steps {list(had)}")
        self.reader, self.keys = reader, reader.keys
        at = [index for index, step in enumerate(had) if step in chosen]
        sigmas = reader.provenance.sigmas
        self.provenance = replace(
            reader.provenance, at_steps=tuple(had[index] for index in at),
            sigmas=None if sigmas is None else tuple(sigmas[index] for index in at),
        )  # fmt: skip

    def read(self, inputs: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the tokens of some inputs, and their labels."""
        tokens, labels = self.reader.read(inputs)
        own = torch.isin(steps_of(labels[:, 1]), torch.tensor(self.provenance.at_steps))
        return tokens[own.to(tokens.device)], labels[own]
