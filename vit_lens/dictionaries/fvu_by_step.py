"""How much of the tokens dictionaries explain, step by step."""

__all__ = ["FVUAtStep", "FVUByStep", "fvu_by_step"]

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.fidelity import given_names
from vit_lens.dictionaries.semantics import Provenance
from vit_lens.dictionaries.source import ActivationSource
from vit_lens.dictionaries.statistics import refuse_other
from vit_lens.dictionaries.steps import steps_of
from vit_lens.errors import DictionaryError

if TYPE_CHECKING:
    import pandas as pd

_ALIKE = 1e-4  # noise levels that differ by less are one


@dataclass(frozen=True, eq=False)
class FVUAtStep:
    """What one dictionary explains of the tokens of one step.

    Attributes:
        name: The dictionary.
        step: The step, counted from 0; None for the tokens of all steps together.
        sigma: Its noise level; None where it is not known, or not finite.
        is_own: Whether the dictionary was learnt at this step.
        fvu: The squared error as a share of the variance of these tokens, over all dimensions together.
        fvu_standardised: The same with every dimension brought to variance 1 first.
        ve: The squared correlation of token and reconstruction, the mean over dimensions (arXiv 2505.24360).
        l0: How many codes of a token are not zero, on average.
        dead: The share of features that fired on none of these tokens.
        n_tokens: How many tokens there are.
        by_input: The FVU of the tokens of each input, as a share of the variance of all: its mean is ``fvu`` where all
            inputs have as many tokens.

    >>> one = FVUAtStep("sae", 0, 1.0, True, 0.2, 0.3, 0.7, 8.0, 0.1, 500, torch.tensor([0.1, 0.3]))
    >>> one.step, one.is_own
    (0, True)
    """

    name: str
    step: int | None
    sigma: float | None
    is_own: bool
    fvu: float
    fvu_standardised: float
    ve: float
    l0: float
    dead: float
    n_tokens: int
    by_input: Float[Tensor, " input"]


@dataclass(frozen=True, eq=False, repr=False)
class FVUByStep:
    """What dictionaries explain of the tokens of each step, and of all together; :func:`fvu_by_step` makes it.

    Attributes:
        points: Of each dictionary all steps together, then each.
        n_inputs: Of how many inputs the tokens are.

    >>> source = vl.ActivationSource.of_array(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)))
    >>> fvu_by_step(vl.dictionaries.random_dictionary(8, 20, k=3), source)
    FVUByStep(1 dictionaries, no steps, 300 inputs)
    """

    points: tuple[FVUAtStep, ...]
    n_inputs: int

    def __repr__(self) -> str:
        steps = sorted({one.step for one in self.points if one.step is not None})
        when = f"steps {', '.join(map(str, steps))}" if steps else "no steps"
        return f"FVUByStep({len({one.name for one in self.points})} dictionaries, {when}, {self.n_inputs} inputs)"

    def of(self, name: str, step: int | None = None) -> FVUAtStep:
        """Return what one dictionary explains of one step, or of all together.

        Raises:
            DictionaryError: There is no such dictionary or step.
        """
        found = [one for one in self.points if (one.name, one.step) == (name, step)]
        if not found:
            known = {(one.name, one.step) for one in self.points}
            raise DictionaryError(f"nothing of {name!r} at step {step}; there are {sorted(known, key=str)}")
        return found[0]

    def to_frame(self) -> "pd.DataFrame":
        """Return a row for each dictionary and step; step is empty for all together.

        Columns: those of :class:`FVUAtStep` but ``by_input``, and n_inputs.
        """
        import pandas as pd

        rows = [{**vars(one), "n_inputs": self.n_inputs} for one in self.points]
        frame = pd.DataFrame(rows).drop(columns="by_input")
        return frame.astype({"step": "Int64", "sigma": "float64"})


@torch.no_grad()
def fvu_by_step(
    dictionaries: Dictionary | Mapping[str, Dictionary], source: ActivationSource, *,
    method: Literal["own", "pursuit", "signed"] | None = None, k: int | None = None,
) -> FVUByStep:  # fmt: skip
    """Measure what dictionaries explain of the tokens of each step, whichever steps they were learnt at.

    All dictionaries are held to the same tokens, which are read once. The variance is that of the step's own tokens:
    a dictionary that knows the mean of a step alone has an FVU of 1 there.

    Args:
        dictionaries: One, or several by name, of one site and branch: of one step, of all, controls.
        source: Tokens that none of them was learnt from, of a diffusion model with the steps that are asked for; of
            another model there are no steps, and one row of each dictionary.
        method: The encoder, as :meth:`Dictionary.encode` takes it.
        k: The number of codes, for pursuit.

    Raises:
        DictionaryError: A dictionary is of another model, hook point or branch, or the tokens of a step are all the
            same.

    >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
    >>> source = vl.ActivationSource.of_model(sd, ["a red star", "a ring"], "mid.0.update", steps=3)
    >>> found = vl.dictionaries.fit((source.at_steps([0]), source.at_steps([0])), vl.dictionaries.ITDA(k=4))
    >>> result = fvu_by_step({"of step 0": found}, source)
    >>> [one.is_own for one in result.points], result.of("of step 0", 0).fvu < result.of("of step 0", 2).fvu
    ([False, True, False, False], True)
    """
    named, _ = given_names(dictionaries)
    for one in named.values():
        refuse_other(one, source, but=("at_steps", "sigmas"))
    said = source.provenance
    keys: list[int | None] = [None, *(said.at_steps or ())]
    place = {index: row for row, index in enumerate(source.inputs)}
    sums = {(name, key): _Moments(one, len(place)) for name, one in named.items() for key in keys}
    for batch in source.in_order():
        rows = torch.tensor([place[index] for index in batch.labels[:, 0].tolist()])
        steps = steps_of(batch.labels[:, 1])
        masks = {key: steps == key for key in keys[1:] if bool((steps == key).any())}
        for name, one in named.items():
            x = batch.tokens.to(one.W_dec.device)
            codes = one.encode(x, method, k=k)
            wide, recons = x.double().cpu(), one.decode(codes, x).double().cpu()
            fired = (codes != 0).cpu()
            sums[name, None].add(wide, recons, fired, rows)
            for key, mask in masks.items():
                sums[name, key].add(wide[mask], recons[mask], fired[mask], rows[mask])
    sigmas = dict(zip(said.at_steps or (), said.sigmas or [None] * len(said.at_steps or ()), strict=True))
    points = tuple(
        moments.result(name, key, None if key is None else sigmas[key], _is_own(named[name].origin, said, key))
        for (name, key), moments in sums.items()
    )
    return FVUByStep(points, len(place))


def _is_own(origin: Provenance, said: Provenance, step: int | None) -> bool:
    """Whether a dictionary was learnt at a step of a run: one of the same noise level, where levels are known."""
    if step is None:
        return (origin.at_steps, origin.sigmas) == (said.at_steps, said.sigmas) and said.at_steps is not None
    sigma = None if said.sigmas is None else said.sigmas[(said.at_steps or ()).index(step)]
    if sigma is None or not origin.sigmas:
        return step in (origin.at_steps or ())
    return any(level is not None and math.isclose(level, sigma, rel_tol=_ALIKE) for level in origin.sigmas)


class _Moments:
    """Sums of tokens and their reconstructions, in float64."""

    def __init__(self, dictionary: Dictionary, n_inputs: int):
        d = dictionary.d
        self.n = 0
        self.mean = torch.zeros(2, d, dtype=torch.float64)  # of tokens, of reconstructions
        self.square, self.product = torch.zeros(2, d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
        self.error = torch.zeros(d, dtype=torch.float64)
        self.fired = torch.zeros(dictionary.n_features, dtype=torch.float64)
        self.errors, self.counts = torch.zeros(2, n_inputs, dtype=torch.float64)

    def add(
        self, x: Float[Tensor, "token d"], y: Float[Tensor, "token d"], fired: Bool[Tensor, "token feature"],
        rows: Int[Tensor, " token"],
    ) -> None:  # fmt: skip
        size, both = len(x), torch.stack([x, y])
        own = both.mean(1)
        gap, rest = own - self.mean, both - own[:, None]
        weight = self.n * size / (self.n + size)  # Chan's update: no digits are lost to a large mean
        self.square += rest.square().sum(1) + gap.square() * weight
        self.product += (rest[0] * rest[1]).sum(0) + gap[0] * gap[1] * weight
        self.mean += gap * (size / (self.n + size))
        self.n += size
        missed = (x - y).square()
        self.error += missed.sum(0)
        self.errors.index_add_(0, rows, missed.sum(1))
        self.counts.index_add_(0, rows, torch.ones(size, dtype=torch.float64))
        self.fired += fired.double().sum(0)

    def result(self, name: str, step: int | None, sigma: float | None, is_own: bool) -> FVUAtStep:
        total, varies = self.square[0], self.square[0] > 0
        if not varies.any():
            raise DictionaryError(f"{self.n} tokens of step {step}, all the same; statistics need tokens that differ")
        both = total * self.square[1]
        alike = torch.where(both > 0, self.product.square() / torch.where(both > 0, both, 1), 0)
        share = self.fired / self.n
        return FVUAtStep(
            name=name, step=step, sigma=sigma, is_own=is_own, fvu=float(self.error.sum() / total.sum()),
            fvu_standardised=float((self.error[varies] / total[varies]).mean()), ve=float(alike[varies].mean()),
            l0=float(share.sum()), dead=float((share == 0).double().mean()), n_tokens=self.n,
            by_input=self.errors / self.counts / (total.sum() / self.n),
        )  # fmt: skip
