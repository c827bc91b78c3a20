"""Which direction stands for a target: the best of several candidates, on inputs that are not studied."""

__all__ = ["Pool", "best_of", "candidates", "difference", "mean_codes", "tokens_of"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vit_lens.dictionaries import ActivationSource, Dictionary, difference_of_means
from vit_lens.hooking import LoudHookedRootModule
from vit_lens.studies.steering.targets import Target
from vit_lens.studies.steering.watching import Push, Watcher


@dataclass(frozen=True, eq=False)
class Pool:
    """Tokens of inputs of which every attribute is known.

    Attributes:
        tokens: Those of each input, of all steps that were read.
        codes: The number of each attribute's value; -1 where an input has no such attribute.
        n_positions: How many tokens a step has; 0 where inputs differ in that.
    """

    tokens: Sequence[Float[Tensor, "token d"]]
    codes: Int[np.ndarray, "input attribute"]
    n_positions: int = 0

    @property
    def source(self) -> ActivationSource:
        """The tokens as a source."""
        return ActivationSource.of_array(list(self.tokens))

    def halves(self, target: Target) -> tuple[Bool[Tensor, " input"], Bool[Tensor, " input"]]:
        """Return which inputs have the target, and which another value of its attribute."""
        found = torch.from_numpy(self.codes[:, target.attribute])
        return found == target.number, (found >= 0) & (found != target.number)


def tokens_of(model: LoudHookedRootModule, inputs: Sequence[Any], dictionary: Dictionary) -> list[Tensor]:
    """Return the tokens that a dictionary is of, of each input of an encoder.

    Args:
        model: The encoder.
        inputs: What it runs on.
        dictionary: The dictionary.
    """
    source = ActivationSource.of_model(
        model, list(inputs), dictionary.check(model), tokens=dictionary.origin.tokens, batch_size=2**16
    )
    parts = [(batch.tokens.cpu(), batch.labels[:, 0].cpu()) for batch in source.in_order()]
    tokens, owners = (torch.cat(part) for part in zip(*parts, strict=True))
    return list(tokens.split(torch.bincount(owners, minlength=len(inputs)).tolist()))


@torch.no_grad()
def mean_codes(dictionary: Dictionary, pool: Pool) -> Float[Tensor, "input feature"]:
    """Return the mean code of each feature over the tokens of each input."""
    return torch.stack([dictionary.encode(tokens).mean(0) for tokens in pool.tokens]).double()


def candidates(codes: Float[Tensor, "input feature"], pool: Pool, target: Target, n: int) -> list[tuple[int, float]]:
    """Return the features with most lift, and it: how much higher their mean code is in inputs of the target.

    Lift is counted in spreads over inputs, so that rare and frequent features compare.

    Args:
        codes: Of a dictionary, as :func:`mean_codes` gives them.
        pool: The inputs.
        target: The target.
        n: How many.
    """
    of, others = pool.halves(target)
    lift = (codes[of].mean(0) - codes[others].mean(0)) / codes.std(0, correction=0)
    lift = torch.where(lift.isfinite(), lift, -torch.inf)
    found = lift.topk(min(n, int(lift.isfinite().sum())))
    return [(int(index), float(value)) for value, index in zip(found.values, found.indices, strict=True)]


def difference(pool: Pool, target: Target) -> Float[Tensor, " d"]:
    """Return the mean token of inputs of the target less that of the others."""
    rows = [some.nonzero()[:, 0].tolist() for some in pool.halves(target)]
    return difference_of_means(*(ActivationSource.of_array([pool.tokens[row] for row in some]) for some in rows))


def best_of(
    watcher: Watcher, target: Target, directions: Sequence[Tensor], inputs: Sequence[Any], seeds: Sequence[int],
    strength: float, steps: tuple[int, ...],
) -> tuple[int, list[float]]:  # fmt: skip
    """Return which direction shows most of a target, and how much each does; the first of equals.

    Args:
        watcher: What runs and looks.
        target: The target.
        directions: The candidates.
        inputs: Inputs that do not have the target.
        seeds: Noises that are not studied.
        strength: How much is added.
        steps: At which steps.
    """
    pushes = [Push(direction, strength, steps) for direction in directions]
    found = [float(watcher.see(inputs, seeds, push).shown(target).mean()) for push in pushes]
    return int(np.argmax(found)), found
