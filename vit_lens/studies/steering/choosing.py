"""Which direction stands for a target: the best of several candidates, on noises that are not studied."""

__all__ = ["Pool", "best_of", "candidates", "difference", "make_pool"]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.dictionaries import ActivationSource, Dictionary, difference_of_means
from vit_lens.mini import still_life
from vit_lens.studies.steering.targets import Target
from vit_lens.studies.steering.watching import Push, Watcher


@dataclass(frozen=True, eq=False)
class Pool:
    """Tokens of pictures of single objects whose prompts say all of them.

    Attributes:
        tokens: Those of all steps that were read, [picture token d].
        codes: What the prompts say, as :func:`still_life.codes` has it.
        n_positions: How many tokens a step has.
    """

    tokens: Float[Tensor, "picture token d"]
    codes: Int[np.ndarray, "picture 7"]
    n_positions: int

    @property
    def source(self) -> ActivationSource:
        """The tokens as a source."""
        return ActivationSource.of_array(self.tokens)

    def has(self, target: Target) -> Tensor:
        """Return which pictures are of the target."""
        return torch.from_numpy(self.codes[:, 1 + target.attribute] == target.number)


def make_pool(watcher: Watcher, steps: Sequence[int], seeds: Sequence[int], objects: Sequence[int]) -> Pool:
    """Draw every object once, with the seeds in turn, and keep the tokens of some steps.

    Args:
        watcher: What draws.
        steps: The steps that are read.
        seeds: Of the noise.
        objects: The numbers of the objects.
    """
    scenes = [still_life.Scene("alone", (number,)) for number in objects]
    prompts = [" ".join(["a", *still_life.object_of(number)]) for number in objects]
    _, cache = watcher.model.run_with_cache(
        prompts, seed=[seeds[k % len(seeds)] for k in range(len(prompts))], names_filter=watcher.site,
        at_steps=list(steps), branch="cond", output_type="latent",
    )  # fmt: skip
    x = cache[watcher.site].movedim(0, 1).cpu()
    return Pool(x.flatten(1, 2), still_life.codes(scenes), x.shape[2])


@torch.no_grad()
def candidates(dictionary: Dictionary, pool: Pool, target: Target, n: int) -> list[tuple[int, float]]:
    """Return the features with most lift, and it: how much higher their mean code is in pictures of the target.

    Lift is counted in spreads over pictures, so that rare and frequent features compare.

    Args:
        dictionary: The dictionary.
        pool: The pictures.
        target: The target.
        n: How many.
    """
    codes = torch.stack([dictionary.encode(tokens).mean(0) for tokens in pool.tokens]).double()
    of = pool.has(target)
    lift = (codes[of].mean(0) - codes[~of].mean(0)) / codes.std(0, correction=0)
    lift = torch.where(lift.isfinite(), lift, -torch.inf)
    found = lift.topk(min(n, int(lift.isfinite().sum())))
    return [(int(index), float(value)) for value, index in zip(found.values, found.indices, strict=True)]


def difference(pool: Pool, target: Target) -> Float[Tensor, " d"]:
    """Return the mean token of pictures of the target less that of the others."""
    of = pool.has(target)
    return difference_of_means(*(ActivationSource.of_array(pool.tokens[some]) for some in (of, ~of)))


def best_of(
    watcher: Watcher, target: Target, directions: Sequence[Tensor], prompts: Sequence[str], seeds: Sequence[int],
    strength: float, steps: tuple[int, ...],
) -> tuple[int, list[float]]:  # fmt: skip
    """Return which direction shows a target most often, and how often each does; the first of equals.

    Args:
        watcher: What draws and looks.
        target: The target.
        directions: The candidates.
        prompts: Prompts that are silent about the target.
        seeds: Noises that are not studied.
        strength: How much is added.
        steps: At which steps.
    """
    pushes = [Push(direction, strength, steps) for direction in directions]
    shares = [float(watcher.see(prompts, seeds, push).shows(target).mean()) for push in pushes]
    return int(np.argmax(shares)), shares
