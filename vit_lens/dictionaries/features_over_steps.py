"""How alike a feature's activations are from step to step, beside the same with steps shuffled."""

__all__ = ["FeaturesOverSteps", "features_over_steps"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.source import ActivationSource
from vit_lens.dictionaries.statistics import refuse_other
from vit_lens.dictionaries.steps import steps_of
from vit_lens.errors import DictionaryError

if TYPE_CHECKING:
    import pandas as pd

_TOKENS_AT_ONCE = 2048  # codes of all features are held for so many tokens
_FLAT = 1e-12  # a variance below this share of the mean square is rounding


@dataclass(frozen=True, eq=False, repr=False)
class FeaturesOverSteps:
    """Correlations of features' activations between steps; :func:`features_over_steps` makes it.

    A correlation is over all inputs and positions. It is not defined where a feature's activation is the same
    everywhere at one of the two steps, as that of one which never fires there.

    Attributes:
        steps: The steps, counted from 0.
        sigmas: Their noise levels; None for one that is not known, or not finite.
        alike: The mean correlation over features; NaN where it is defined for none.
        shuffled: The same with the steps of each input in random order, over the same features and all orders drawn.
        n_defined: Of how many features each mean is.
        features: The features.
        neighbours: Of each feature the mean over neighbouring steps; NaN where none is defined.
        neighbours_shuffled: The same of shuffled steps.
        n_inputs: How many inputs there are.
        n_positions: How many positions each has.

    >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
    >>> source = vl.ActivationSource.of_model(sd, ["a red star", "a ring"], "mid.0.update", steps=4)
    >>> found = features_over_steps(vl.dictionaries.random_dictionary(112, 60, k=6), source)
    >>> found, bool((found.neighbours.nanmean() > found.neighbours_shuffled.nanmean()))
    (FeaturesOverSteps(60 features, steps 0, 1, 2, 3, 2 inputs of 16 positions), True)
    """

    steps: tuple[int, ...]
    sigmas: tuple[float | None, ...] | None
    alike: Float[Tensor, "step step"]
    shuffled: Float[Tensor, "step step"]
    n_defined: Int[Tensor, "step step"]
    features: tuple[int, ...]
    neighbours: Float[Tensor, " feature"]
    neighbours_shuffled: Float[Tensor, " feature"]
    n_inputs: int
    n_positions: int

    def __repr__(self) -> str:
        of = f"{len(self.features)} features, steps {', '.join(map(str, self.steps))}"
        return f"FeaturesOverSteps({of}, {self.n_inputs} inputs of {self.n_positions} positions)"

    def to_frame(self) -> "pd.DataFrame":
        """Return a row for each pair of steps.

        Columns: step, other, sigma, sigma_other, alike, shuffled, n_features, n_inputs.
        """
        import pandas as pd

        sigmas = self.sigmas or [None] * len(self.steps)
        rows = [
            {
                "step": step, "other": other, "sigma": sigmas[i], "sigma_other": sigmas[j],
                "alike": float(self.alike[i, j]), "shuffled": float(self.shuffled[i, j]),
                "n_features": int(self.n_defined[i, j]), "n_inputs": self.n_inputs,
            }
            for i, step in enumerate(self.steps)
            for j, other in enumerate(self.steps)
        ]  # fmt: skip
        return pd.DataFrame(rows).astype({"sigma": "float64", "sigma_other": "float64"})


@torch.no_grad()
def features_over_steps(
    dictionary: Dictionary, source: ActivationSource, features: Sequence[int] | None = None, *, n_shuffles: int = 8,
    seed: int = 0,
) -> FeaturesOverSteps:  # fmt: skip
    """Correlate each feature's activations at one step with those at another, over inputs and positions.

    The null puts the steps of each input into a random order, the same for all positions and features: pictures and
    places stay, the order of time goes. Where neighbouring steps are no more alike than that, features follow the
    picture and not the step.

    Steps times steps numbers are held of each feature, for the steps as they are and for each order that is drawn.

    Args:
        dictionary: The dictionary, whichever steps it was learnt at.
        source: Tokens of a diffusion model, of at least two steps.
        features: The features; None takes all.
        n_shuffles: How many random orders are drawn of each input.
        seed: The seed of the orders.

    Raises:
        DictionaryError: The dictionary is of another model or hook point, there is no such feature, there are fewer
            than two steps, or an input has other positions at one step than at another.

    >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
    >>> source = vl.ActivationSource.of_model(sd, ["a red star", "a ring"], "mid.0.update", steps=3)
    >>> found = features_over_steps(vl.dictionaries.random_dictionary(112, 60, k=6), source, [3, 17, 40])
    >>> found.to_frame().columns.tolist()[:2], found.alike.shape
    (['step', 'other'], torch.Size([3, 3]))
    """
    refuse_other(dictionary, source, but=("at_steps", "sigmas"))
    steps = source.provenance.at_steps
    if steps is None or len(steps) < 2:
        raise DictionaryError(f"the tokens are of steps {steps}; likeness over steps needs a source of two, at least")
    if (as_index(n_shuffles) or 0) < 1:
        raise DictionaryError(f"n_shuffles={n_shuffles!r}; expected a whole number, at least 1")
    chosen = list(range(dictionary.n_features)) if features is None else [*map(dictionary.feature, features)]
    if not chosen:
        raise DictionaryError("no features; name some, counted from 0, or leave features= out")
    generator = torch.Generator().manual_seed(seed)
    shape = (1 + n_shuffles, len(steps), len(steps), len(chosen))
    products, sums, n, n_positions = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape[0], *shape[2:]), 0, 0
    sums = sums.double()
    for tokens in _inputs(source, steps):
        own, total = _products(dictionary, tokens, chosen)
        for draw in range(shape[0]):
            order = torch.randperm(len(steps), generator=generator) if draw else torch.arange(len(steps))
            products[draw] += own[order][:, order]
            sums[draw] += total[order]
        n, n_positions = n + tokens.shape[1], tokens.shape[1]
    correlations = _correlations(products / n, sums / n)
    defined = correlations.isfinite().all(0)
    found = torch.where(defined, correlations, torch.nan)
    neighbours = found.diagonal(offset=1, dim1=1, dim2=2).nanmean(2)  # [draw feature]
    return FeaturesOverSteps(
        steps=steps, sigmas=source.provenance.sigmas, alike=found[0].nanmean(2), shuffled=found[1:].mean(0).nanmean(2),
        n_defined=defined.sum(2), features=tuple(chosen), neighbours=neighbours[0],
        neighbours_shuffled=neighbours[1:].mean(0), n_inputs=len(source.inputs), n_positions=n_positions,
    )  # fmt: skip


def _inputs(source: ActivationSource, steps: tuple[int, ...]) -> Iterator[Float[Tensor, "step pos d"]]:
    """Give the tokens of each input by step and position."""
    for start in range(0, len(source.inputs), source.buffer):
        part = source.inputs[start : start + source.buffer]
        tokens, labels = source.reader.read(part)
        for index in part:
            own = labels[:, 0] == index
            places, x = labels[own, 1], tokens[own.to(tokens.device)]
            order = places.argsort()
            at = steps_of(places[order])
            counts = [int((at == step).sum()) for step in steps]
            if len(set(counts)) != 1 or sum(counts) != len(places):
                raise DictionaryError(f"input {index} has {counts} tokens at the steps {list(steps)}; expected as many")
            yield x[order.to(x.device)].unflatten(0, (len(steps), counts[0]))


def _products(
    dictionary: Dictionary, tokens: Float[Tensor, "step pos d"], chosen: list[int]
) -> tuple[Float[Tensor, "step step feature"], Float[Tensor, "step feature"]]:
    """Return sums over positions of products of codes, and of codes."""
    n_steps, n = tokens.shape[:2]
    products = torch.zeros(n_steps, n_steps, len(chosen), dtype=torch.float64)
    sums = torch.zeros(n_steps, len(chosen), dtype=torch.float64)
    for part in tokens.split(max(1, min(n, _TOKENS_AT_ONCE // n_steps)), dim=1):
        codes = dictionary.encode(part.flatten(0, 1).to(dictionary.W_dec.device))[:, chosen]
        wide = codes.double().cpu().unflatten(0, (n_steps, -1))
        products += torch.einsum("spf,tpf->stf", wide, wide)
        sums += wide.sum(1)
    return products, sums


def _correlations(
    products: Float[Tensor, "draw step step feature"], means: Float[Tensor, "draw step feature"]
) -> Float[Tensor, "draw step step feature"]:
    """Return correlations of mean products and means; NaN where one of the two does not vary."""
    squares = products.diagonal(dim1=1, dim2=2).movedim(-1, 1)
    variance = squares - means.square()
    spread = torch.where(variance > _FLAT * squares, variance, torch.nan).sqrt()
    return (products - means[:, :, None] * means[:, None]) / (spread[:, :, None] * spread[:, None])
